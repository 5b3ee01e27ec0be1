"""Receipts: what an intervention did, counted while it did it."""

from __future__ import annotations

from typing import Literal

from refusalscope.errors import InterventionError
from refusalscope.reprs import Shown

State = Literal["unused", "valid", "invalid"]


class Receipt(Shown):
    """Fire counts per site and the largest residue |Uᵀh| / max‖h‖ seen at each checked site.

    A receipt is ``unused`` when no forward ran inside the block, ``valid`` when every site fired on every forward and
    every residue is within tolerance, and ``invalid`` otherwise. An invalid intervention is never "robust".
    """

    def __init__(self, what: str, sites: tuple[str, ...], *, checked: tuple[str, ...]) -> None:
        self.what = what
        self.checked = checked
        self.forwards = 0
        self.fires = dict.fromkeys(sites, 0)
        self.residues: dict[str, float] = {}
        self.state: State = "unused"
        self._unfinished: dict[str, int] | None = None

    def forward_began(self) -> None:
        """Counts one forward pass, and forgets one that broke off before it (memory ended, and it is run again)."""
        self._forget_unfinished()
        self.state = "invalid"  # until verified
        self.forwards += 1
        self._unfinished = dict(self.fires)

    def forward_ended(self) -> None:
        """Notes that the forward pass came to its end."""
        self._unfinished = None

    def fired(self, site: str) -> None:
        """Counts one firing of the edit at a site."""
        self.fires[site] += 1

    def checked_at(self, site: str, residue: float) -> None:
        """Keeps the largest residue seen at a site; NaN counts as the largest."""
        before = self.residues.get(site, 0.0)
        self.residues[site] = before if before != before or residue <= before else residue

    @property
    def residue(self) -> float | None:
        """The largest residue over all checked sites, or None where none is checked."""
        return max(self.residues.values(), key=lambda x: (x != x, x), default=None)

    def verify(self, *, tolerance: float) -> None:
        """Sets the state. Raises InterventionError, naming the first site at fault, when it is ``invalid``."""
        self._forget_unfinished()
        if self.forwards == 0 and not any(self.fires.values()):
            self.state = "unused"
            return
        self.state = "invalid"
        for site, count in self.fires.items():
            if count != self.forwards:
                raise InterventionError(
                    f"{self.what}: the hook at {site} fired {count} times in {self.forwards} forwards."
                )
        for site in self.checked:
            residue = self.residues.get(site)
            if residue is None or not residue <= tolerance:
                raise InterventionError(
                    f"{self.what}: at {site} the residual stream still held {residue} of the subspace (relative to its "
                    f"norm; tolerance {tolerance:.1e}). Results from this block are invalid."
                )
        self.state = "valid"

    def _forget_unfinished(self) -> None:
        if self._unfinished is not None:
            self.fires, self._unfinished, self.forwards = self._unfinished, None, self.forwards - 1

    def __repr__(self) -> str:
        return f"Receipt: {self.what}, {self.state}"
