"""How large a model is and what its forwards take: parameters, memory and operations, from shapes alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from refusalscope.model.chat import ChatModel
from refusalscope.reprs import Shown
from refusalscope.scoring import TOGETHER

GB = 1e9
WIDE = 4  # bytes of float32, in which hooks, logits and reductions work
BITS = {"load_in_8bit": 8, "load_in_4bit": 4}


@dataclass(frozen=True, repr=False)
class Size(Shown):
    """What a model's parameters come to.

    Attributes:
        parameters: all of them, tied ones once.
        active: those a token goes through: of a layer's experts only the chosen ones.
        tables: input and output embeddings, which a token of the prompt is not multiplied with.
        inner: the widest layer inside an MLP, of all experts chosen at once.
    """

    parameters: int
    active: int
    tables: int
    layers: int
    width: int
    heads: int
    head_width: int
    inner: int
    vocabulary: int


@dataclass(frozen=True, repr=False)
class Memory(Shown):
    """Peak memory of a selection in bytes, by what it is for; device and host together.

    Attributes:
        weights: the parameters, in their own format.
        activations: the rows of one batch in the layer that needs most, and the residual streams kept to resume from.
        logits: at one position of every row, and the log-probabilities KL is compared with.
        moments: running means of every layer and position, and single activations where they are kept.
    """

    weights: float
    activations: float
    logits: float
    moments: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(asdict(self).values())


def size_of(model: ChatModel) -> Size:
    """Returns a model's size; works on one without weights."""
    core = _core(model)
    config, cfg = core.config.get_text_config(), model.bridge.cfg
    counts = {name: value.numel() for name, value in core.named_parameters()}
    experts = sum(count for name, count in counts.items() if "experts" in name.split("."))
    total, (chosen, of) = sum(counts.values()), _experts(config)
    tables = {id(part.weight): part.weight.numel() for part in _tables(core)}
    return Size(
        parameters=total,
        active=total - round(experts * (1 - chosen / of)),
        tables=sum(tables.values()),
        layers=model.n_layers,
        width=model.d_model,
        heads=int(cfg.n_heads),
        head_width=int(cfg.d_head),
        inner=_inner(config, chosen),
        vocabulary=int(config.vocab_size),
    )


def flops_per_prompt(size: Size, tokens: float) -> float:
    """Returns the operations of one prompt-forward of so many tokens.

    2 · (active − tables) · T, the unembedding at one position 2 · V · d, and 4 · L · T² · heads · head width for scores
    and weighted sums, which eager attention computes for the masked half too. Reading the embedding costs none.
    """
    attention = 4.0 * size.layers * tokens**2 * size.heads * size.head_width
    return 2.0 * (size.active - size.tables) * tokens + 2.0 * size.vocabulary * size.width + attention


def memory(model: ChatModel, *, tokens: int, harmless: int, kept: int = 0) -> Memory:
    """Returns the peak memory to expect of a selection.

    Largest while induction is scored: all P positions of a layer are added in one go, so that P rows stand for every
    row of the batch, and the residual streams of all layers are kept to resume from.

    Args:
        model: with or without weights.
        tokens: of the longest prompt, chat template included.
        harmless: harmless prompts whose log-probabilities are kept.
        kept: prompts whose single activations are kept, as the curve over the prompt budget asks.
    """
    size, each = size_of(model), model.dtype.itemsize
    batch = min(model.batch_size, harmless)
    rows = max(batch * model.n_positions, TOGETHER * max(1, batch // TOGETHER))
    attention = size.heads * (4 * size.head_width * each + tokens * (2 * each + WIDE))
    layer = max(attention, 3 * size.inner * each) + 2 * size.width * each
    edited = 2 * WIDE * size.width
    streams = batch * size.layers * size.width * each
    cells = size.layers * model.n_positions * size.width
    return Memory(
        weights=float(weight_bytes(model)),
        activations=float(tokens * (rows * (layer + edited) + streams)),
        logits=float(size.vocabulary * (rows * (each + 2 * WIDE) + 2 * WIDE * harmless)),
        moments=float(2 * 2 * 8 * cells + kept * cells * WIDE),
    )


def weight_bytes(model: ChatModel) -> int:
    """Returns the bytes of the parameters: in the model's format, or of fewer bits where the checkpoint is quantised.

    Quantised are the matrices inside the layers; their scales, a few percent, are left out.
    """
    core = _core(model)
    bits = _bits(getattr(core.config, "quantization_config", None))
    tables = {id(part.weight) for part in _tables(core)}
    total = 0
    for value in core.parameters():
        packed = bits and value.ndim == 2 and id(value) not in tables and value.is_floating_point()
        total += value.numel() * bits // 8 if packed else value.numel() * value.element_size()
    return total


def _core(model: ChatModel) -> Any:
    return model.bridge.original_model


def _bits(settings: Any) -> int:
    given = settings if isinstance(settings, dict) else vars(settings) if settings is not None else {}
    return next((bits for name, bits in BITS.items() if given.get(name)), int(given.get("bits") or 0))


def _tables(core: Any) -> list[Any]:
    return [part for part in (core.get_input_embeddings(), core.get_output_embeddings()) if part is not None]


def _experts(config: Any) -> tuple[int, int]:
    """How many experts a token goes through, and of how many."""
    names = ("num_experts", "n_routed_experts", "num_local_experts")
    of = next((int(found) for name in names if (found := getattr(config, name, None))), 1)
    chosen = int(getattr(config, "num_experts_per_tok", None) or of)
    return min(chosen, of), of


def _inner(config: Any, chosen: int) -> int:
    dense = int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    expert = int(getattr(config, "moe_intermediate_size", None) or 0)
    return max(dense, chosen * expert)
