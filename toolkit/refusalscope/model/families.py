"""The families of models whose whole path from loading to a card is checked on a tiny model of each, and their limits.

A row is data; a test builds the model it is about and compares every column with what is found there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import overload

from refusalscope.reprs import Shown, table

TRANSFORMERS, TRANSFORMER_LENS = "5.23.0", "4.3.0"
BARE = ("blocks.{layer}.attn.hook_out", "blocks.{layer}.mlp.hook_out")
BEHIND_NORMS = ("blocks.{layer}.ln1_post.hook_out", "blocks.{layer}.ln2_post.hook_out")
NORMED = "a norm stands behind attention and MLP: attribution tells attentions apart, not heads"
EXPERTS = "all experts of a layer are one write: experts cannot be told apart"
NO_SYSTEM = "its template takes no system message"
CAPPED = "final logits are soft-capped: margins are those of the capped logits"


@dataclass(frozen=True, repr=False)
class Family(Shown):
    """One family, as a tiny model of it was measured.

    Attributes:
        model_type, architecture: as in ``config.json``.
        writes: where a layer's attention and MLP write to the residual stream; the embedding is the first write.
        heads: whether attribution can tell attention heads apart.
        resumes: whether later layers alone can be run again, which makes selection cheaper.
        limits: what to know before reading a card.
        transformers, transformer_lens: the versions it was checked with.
    """

    family: str
    model_type: str
    architecture: str
    writes: tuple[str, str] = BARE
    heads: bool = True
    resumes: bool = True
    limits: tuple[str, ...] = ()
    transformers: str = TRANSFORMERS
    transformer_lens: str = TRANSFORMER_LENS

    def sites(self, n_layers: int) -> tuple[str, ...]:
        """Returns the 2L+1 hook names of the writes, in the order of ``Sites.writes``."""
        layers = (write.format(layer=layer) for layer in range(n_layers) for write in self.writes)
        return ("blocks.0.hook_in", *layers)

    def to_dict(self) -> dict[str, object]:
        """Returns the columns by name."""
        return asdict(self)

    def __repr__(self) -> str:
        return f"Family {self.family}: {self.architecture}"


@dataclass(frozen=True, repr=False)
class Families(Shown, Sequence[Family]):
    """The rows; iterate, index, or look at it in a notebook."""

    rows: tuple[Family, ...]

    @overload
    def __getitem__(self, index: int) -> Family: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Family, ...]: ...
    def __getitem__(self, index: int | slice) -> Family | tuple[Family, ...]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Family]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"Families: {', '.join(row.family for row in self.rows)}"

    def _repr_html_(self) -> str:
        names = ("family", "architecture", "writes", "heads", "known limits")
        checked = f"Checked with transformers {TRANSFORMERS} and TransformerLens {TRANSFORMER_LENS}"
        return table([_cells(row) for row in self.rows], caption=checked, head=names)


def families() -> Families:
    """Returns the families whose whole path is checked: load, positions, refusal tokens, capture, select, card.

    Others that TransformerLens has an adapter for may work; ``load`` checks their sites and says what is missing.

    Example:
        >>> families()[0].family
        'Llama'
    """
    return Families(ROWS)


def _cells(row: Family) -> tuple[str, ...]:
    heads = "told apart" if row.heads else "not told apart"
    return row.family, row.architecture, ", ".join(row.writes), heads, "; ".join(row.limits) or "none known"


ROWS = (
    Family("Llama", "llama", "LlamaForCausalLM", limits=("its template writes a date, which is pinned",)),
    Family("Gemma 1", "gemma", "GemmaForCausalLM", limits=(NO_SYSTEM,)),
    Family(
        "Gemma 2",
        "gemma2",
        "Gemma2ForCausalLM",
        BEHIND_NORMS,
        heads=False,
        limits=(NORMED, CAPPED, NO_SYSTEM),
    ),
    Family(
        "Gemma 3",
        "gemma3_text",
        "Gemma3ForCausalLM",
        BEHIND_NORMS,
        heads=False,
        limits=(
            NORMED,
            "text only: checkpoints that read images need torchvision and are not checked",
            "a few loud channels can own a difference in means",
        ),
    ),
    Family("Qwen 2", "qwen2", "Qwen2ForCausalLM", limits=("its template sends a system message of its own",)),
    Family("Qwen 3", "qwen3", "Qwen3ForCausalLM", limits=("measured with thinking off",)),
    Family(
        "Qwen 3 MoE",
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        limits=(EXPERTS, "a checkpoint that always thinks is measured behind an empty thought"),
    ),
    Family(
        "DeepSeek-V3",
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        limits=(
            f"{EXPERTS}, nor from the shared one",
            "measured with thinking off, or behind an empty thought",
            "Kimi K2 has this architecture; the code published with both is not run",
        ),
    ),
    Family("Mistral", "mistral", "MistralForCausalLM"),
    Family("Mixtral", "mixtral", "MixtralForCausalLM", limits=(EXPERTS, NO_SYSTEM)),
    Family("Phi-3", "phi3", "Phi3ForCausalLM", limits=("its template writes no BOS",)),
    Family(
        "GPT-OSS",
        "gpt_oss",
        "GptOssForCausalLM",
        limits=(
            EXPERTS,
            "measured in the final channel, behind an empty analysis",
            "attention sinks: attention weights over tokens do not sum to one",
        ),
    ),
    Family(
        "GLM-4",
        "glm4",
        "Glm4ForCausalLM",
        BEHIND_NORMS,
        heads=False,
        limits=(NORMED, "its template writes no BOS, but two tokens of its own"),
    ),
    Family(
        "OLMo 2",
        "olmo2",
        "Olmo2ForCausalLM",
        BEHIND_NORMS,
        heads=False,
        limits=(NORMED, "roles are plain text, several tokens each"),
    ),
)
