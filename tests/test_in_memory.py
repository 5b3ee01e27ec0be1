"""Models in memory: loaded with their tokenizer, named by a digest of their tensors, and changed by it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from refusalscope import load
from refusalscope.errors import ModelError
from refusalscope.model import Chat, batches, forward
from refusalscope.model.digests import tensors_digest
from refusalscope.results.facts import model_facts


@pytest.fixture
def module(tiny_dir) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(tiny_dir):
    return AutoTokenizer.from_pretrained(tiny_dir)


def logits(model, texts) -> torch.Tensor:
    (batch,) = batches(model, model.encode(texts[:4]), batch_size=4)
    return forward(model, batch)


def test_it_is_the_model_that_its_directory_holds(module, tokenizer, tiny, texts):
    model = load(module, tokenizer=tokenizer)
    assert torch.equal(logits(model, texts), logits(tiny, texts))
    assert (model.can_resume, model.sites, model.template) == (tiny.can_resume, tiny.sites, tiny.template)
    assert model.origin.tokenizer == tiny.origin.tokenizer


def test_it_is_called_what_its_configuration_remembers_or_as_told(tiny_dir, tokenizer):
    def fresh(remembered: str) -> PreTrainedModel:
        made = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32)
        made.config.name_or_path = remembered
        return made

    assert load(fresh("someone/Some-Model"), tokenizer=tokenizer).origin.name == "Some-Model"
    assert load(fresh("/somewhere/here/my-model/"), tokenizer=tokenizer).origin.name == "my-model"
    assert load(fresh(""), tokenizer=tokenizer).origin.name == "in-memory model"
    assert load(fresh("x"), tokenizer=tokenizer, name="my own").origin.name == "my own"


def test_its_weights_have_a_digest_that_a_card_can_store(module, tokenizer):
    model = load(module, tokenizer=tokenizer)
    facts = model_facts(model)
    assert facts.weights == model.origin.weights
    assert (facts.commit, facts.quantisation, facts.code_not_run) == (None, None, False)


def test_equal_tensors_have_equal_digests_and_any_change_another(tiny_dir, module):
    again = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32)
    digest = tensors_digest(module.state_dict())
    assert tensors_digest(again.state_dict()) == digest
    assert tensors_digest(dict(reversed(module.state_dict().items()))) == digest
    tensors = {name: tensor.clone() for name, tensor in again.state_dict().items()}
    assert tensors_digest(tensors) == digest
    name = "model.layers.1.mlp.up_proj.weight"
    changes = {
        "one number": tensors[name].index_fill(0, torch.tensor([0]), 1.0),
        "the shape": tensors[name].T.contiguous().reshape(tensors[name].T.shape),
        "the format": tensors[name].to(torch.bfloat16),
        "the same bytes as other numbers": tensors[name].view(torch.int32),
    }
    others = {what: tensors_digest({**tensors, name: changed}) for what, changed in changes.items()}
    others["the name"] = tensors_digest({f"{key}x" if key == name else key: value for key, value in tensors.items()})
    assert len({digest, *others.values()}) == len(others) + 1


def test_a_digest_takes_scalars_empty_tensors_and_views():
    matrix = torch.arange(6.0).reshape(2, 3)
    odd = {"a": torch.tensor(1), "b": torch.zeros(0), "c": matrix.T, "d": torch.tensor(True)}
    same = {key: value.clone().contiguous() for key, value in odd.items()}
    assert tensors_digest(odd) == tensors_digest(same)
    assert tensors_digest({"c": matrix.T}) != tensors_digest({"c": matrix.reshape(3, 2)})


def test_it_stays_in_its_own_format(tiny_dir, tokenizer):
    module = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.bfloat16)
    model = load(module, tokenizer=tokenizer)
    assert (model.origin.dtype, model.dtype) == ("bfloat16", torch.bfloat16)


def test_one_made_from_a_bare_configuration_loads(module, tokenizer):
    config = module.config
    config.architectures = None
    made = type(module)(config).eval()
    assert load(made, tokenizer=tokenizer).origin.architecture == "Qwen3ForCausalLM"


def test_a_template_can_be_given(module, tokenizer, tiny):
    chat = Chat(template="{{ messages[0]['content'] }}<|im_end|>")
    assert load(module, tokenizer=tokenizer, chat=chat).template.source != tiny.template.source


def test_a_tokenizer_without_a_name_on_this_machine_is_not_looked_up(module, tokenizer, monkeypatch):
    """TransformerLens would load a tokenizer that adds no BOS once more, by its name."""
    import copy

    made = copy.deepcopy(tokenizer)
    made.name_or_path = made.init_kwargs["name_or_path"] = "someone/nowhere"
    made.bos_token = made.eos_token
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_args, **_more: pytest.fail("it was looked up"))
    assert load(module, tokenizer=made).n_positions > 0


WRONG = {
    "no tokenizer": ({"tokenizer": None}, "a model in memory needs its tokenizer. Pass it: load(model, tokenizer="),
    "a revision": ({"revision": "main"}, "revision=main is for files"),
    "a format": ({"dtype": torch.float32}, "dtype=torch.float32 is for files"),
    "a device": ({"device": "cpu"}, "device=cpu is for files"),
    "a device map": ({"device_map": "auto"}, "device_map=auto is for files"),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_does_not_belong_to_a_model_in_memory_is_one_line(module, tokenizer, given, said):
    with pytest.raises(ModelError) as error:
        load(module, **{"tokenizer": tokenizer, "name": "mine", **given})
    assert str(error.value).startswith("mine: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    load(module, tokenizer=tokenizer, name="mine")  # the control: it was not changed by the refusal


def test_a_module_is_loaded_once(module, tokenizer):
    load(module, tokenizer=tokenizer, name="mine")
    with pytest.raises(ModelError, match=r"mine: this model is loaded already\. Use the ChatModel"):
        load(module, tokenizer=tokenizer, name="mine")


@pytest.mark.parametrize("key", ["tokenizer", "name"])
def test_a_tokenizer_or_a_name_for_a_directory_is_one_line(tiny_dir, tokenizer, key):
    given = {"tokenizer": tokenizer, "name": "mine"}[key]
    with pytest.raises(ModelError, match=rf"{key}= is for a model in memory; files have their own\. Leave it out\."):
        load(tiny_dir, **{key: given})


def test_an_architecture_without_an_adapter_is_one_line(tokenizer):
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        "helium", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8
    )
    config.num_attention_heads = config.num_key_value_heads = 4
    with pytest.raises(ModelError, match=r"in-memory model: a HeliumForCausalLM cannot be loaded \(TransformerLens"):
        load(AutoModelForCausalLM.from_config(config), tokenizer=tokenizer)
