"""A chat model from a live Hugging Face module, through the checks that a directory goes through.

For models that exist in memory only, such as random weights in the shape of a larger model: no such directory need be
written. The module is changed by it, and cannot be saved afterwards.
"""

from __future__ import annotations

import copy
import tempfile

from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from refusalscope.model.chat import ChatModel, Origin
from refusalscope.model.digests import tokenizer_digest
from refusalscope.model.loading import probed
from refusalscope.model.placement import check_in_memory
from refusalscope.model.template import find_template


def from_live(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str) -> ChatModel:
    """Returns a chat model around a module that is in memory, in the format and on the device it is in.

    Its weights have no digest. Raises ModelError as ``load`` does for a template, sites or logits that will not do.
    """
    template = find_template(tokenizer, name=name)
    with tempfile.TemporaryDirectory() as folder:
        module.config.save_pretrained(folder)  # the bridge reads settings from a directory
        bridge = TransformerBridge.boot_transformers(
            folder, hf_model=module, tokenizer=copy.deepcopy(tokenizer), dtype=module.dtype, device=str(module.device)
        )
    bridge.eval()
    check_in_memory(bridge, name=name)
    origin = Origin(
        name=name,
        commit=None,
        weights="",
        tokenizer=tokenizer_digest(tokenizer),
        template=template.digest,
        dtype=str(module.dtype).removeprefix("torch."),
        device=str(bridge.cfg.device),
        architecture=str(bridge.cfg.architecture),
    )
    return probed(bridge, tokenizer, origin, template)
