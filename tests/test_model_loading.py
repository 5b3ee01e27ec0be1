"""Loading: nothing that runs code is opened, a name means one thing, a Hub model is pinned."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from refusalscope.errors import ModelError
from refusalscope.model import CodeNotRunWarning, UnpinnedRevisionWarning, load, loading
from refusalscope.model.loader_report import UnusedTensorsWarning
from refusalscope.model.safety import check_directory
from refusalscope.model.source import Source
from refusalscope.model.without_code import without_code

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copied(tiny_dir, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_dir, tmp_path / "model"))


class Bomb:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def edit(file: Path, change) -> None:
    values = json.loads(file.read_text()) if file.exists() else {}
    change(values)
    file.write_text(json.dumps(values))


def test_the_unchanged_directory_passes(copied):
    check_directory(copied, name="model")


OTHERS = {"model_type": "nonsense", "architectures": ["NonsenseForCausalLM"]}


@pytest.mark.parametrize("key", ["auto_map", "trust_remote_code", "custom_pipelines"])
@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json"]
)
def test_a_key_that_names_code_is_refused_at_any_depth_where_the_code_is_needed(copied, file, key):
    edit(
        copied / file, lambda values: values.update({"more_settings": {"parts": [{key: {"AutoModel": "evil.Model"}}]}})
    )
    with pytest.warns(CodeNotRunWarning, match=rf"model: {file} names code that was not run"):
        assert load(copied).origin.code_not_run
    edit(copied / "config.json", lambda values: values.update(OTHERS))
    with pytest.raises(ModelError, match=rf"{file} has the key '{key}'.* no architecture \['NonsenseForCausalLM'\]"):
        load(copied)


def test_a_key_hidden_behind_its_own_repetition_is_seen(copied):
    text = (copied / "config.json").read_text()
    (copied / "config.json").write_text('{"sub": {"auto_map": {}}, "sub": {},' + text.lstrip().removeprefix("{"))
    with pytest.warns(CodeNotRunWarning):
        load(copied)


def test_a_directory_that_names_no_code_is_read_where_it_lies(copied):
    source = Source(copied, "model", None)
    with without_code(source) as same:
        assert same is source


@pytest.mark.parametrize(
    "change", [{"architectures": ["LlamaForCausalLM"]}, {"architectures": None}, {"model_type": ["qwen3"]}]
)
def test_code_is_needed_unless_model_type_and_architecture_are_of_one_kind(copied, change):
    edit(copied / "config.json", lambda values: values.update(change, auto_map={}))
    with pytest.raises(ModelError, match="names code to run"):
        load(copied)


def test_settings_too_deep_to_read_are_refused(copied):
    (copied / "extra_config.json").write_text("[" * 200_000 + "]" * 200_000)
    with pytest.raises(ModelError, match="not readable as JSON"):
        load(copied)


def test_pickled_weights_alone_are_refused(copied, tmp_path):
    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "opened")))
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin, which run code"):
        load(copied)
    assert not (tmp_path / "opened").exists()


def test_pickled_weights_beside_safetensors_are_never_opened(copied, tmp_path):
    for name in ("pytorch_model.bin", "consolidated.pth"):
        (copied / name).write_bytes(pickle.dumps(Bomb(tmp_path / "opened")))
    load(copied)
    assert not (tmp_path / "opened").exists()
    pickle.loads((copied / "pytorch_model.bin").read_bytes())  # the positive control: opening it is noticed
    assert (tmp_path / "opened").exists()


def test_safetensors_under_a_name_the_loader_passes_over_do_not_excuse_a_pickle(copied):
    (copied / "model.safetensors").rename(copied / "consolidated.safetensors")
    (copied / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="run code"):
        load(copied)


@pytest.mark.parametrize("shard", ["pytorch_model-00001.bin", "../elsewhere.safetensors", "missing.safetensors"])
def test_an_index_that_points_at_something_else_is_refused(copied, shard):
    (copied / "model.safetensors").unlink()
    edit(copied / "model.safetensors.index.json", lambda values: values.update(weight_map={"lm_head.weight": shard}))
    with pytest.raises(ModelError, match="points at"):
        load(copied)


def test_a_sharded_model_loads_and_its_digest_covers_every_shard(copied):
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    names = sorted(weights)
    shards = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for shard, members in shards.items():
        save_file({name: weights[name] for name in members}, copied / shard, metadata={"format": "pt"})
    table = {name: shard for shard, members in shards.items() for name in members}
    (copied / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    (copied / "model.safetensors").unlink()
    content = b"".join((copied / shard).read_bytes() for shard in sorted(shards))
    assert load(copied).origin.weights == hashlib.sha256(content).hexdigest()


def test_the_weights_digest_of_one_file_is_its_sha256(tiny, tiny_dir):
    assert tiny.origin.weights == hashlib.sha256((tiny_dir / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("file", ["config.json", "adapter_config.json"])
def test_a_directory_that_is_no_whole_model_is_refused(copied, file):
    (copied / file).unlink() if file == "config.json" else (copied / file).write_text("{}")
    with pytest.raises(ModelError, match=file):
        load(copied)


def test_weights_named_by_the_configuration_are_refused(copied):
    edit(copied / "config.json", lambda values: values.update(transformers_weights="other.safetensors"))
    with pytest.raises(ModelError, match="transformers_weights"):
        load(copied)


def test_an_image_model_is_refused_where_loading_would_install_a_package(copied, monkeypatch):
    edit(copied / "config.json", lambda values: values.update(vision_config={}))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr("refusalscope.model.safety.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="Install torchvision first"):
        load(copied)


def test_a_model_without_a_chat_template_is_refused_with_the_way_to_give_one(copied):
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"no chat template\. Pass one: load\(\.\.\., chat="):
        load(copied)


def test_a_missing_directory_names_the_nearest_one(copied):
    with pytest.raises(ModelError, match=r"no such directory\. Did you mean '.*/model'"):
        load(copied.with_name("modell"))
    with pytest.raises(ModelError, match=r"no such directory\. Did you mean"):
        load(str(copied.with_name("modell")))


def one_line(error) -> bool:
    return "\n" not in str(error.value) and str(error.value).startswith("model: ")


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_weights_that_are_cut_off_are_one_line_with_the_thing_to_do(copied, kept):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(ModelError, match=r"model.safetensors is damaged or cut off .*download it again") as error:
        load(copied)
    assert one_line(error)


@pytest.mark.parametrize("change", [{"model_type": "nonsense"}, {"model_type": None}])
def test_a_model_type_nobody_knows_is_one_line_with_the_thing_to_do(copied, change):
    edit(copied / "config.json", lambda values: values.update(change))
    with pytest.raises(ModelError, match=f"model_type {change['model_type']!r} .*cannot be loaded") as error:
        load(copied)
    assert one_line(error)


@pytest.mark.parametrize("raised", [ValueError("Unsupported architecture: X\nmore"), KeyError("rope_theta")])
def test_an_architecture_transformer_lens_does_not_know_is_one_line(copied, monkeypatch, raised):
    def refuse(*_args, **_settings):
        raise raised

    monkeypatch.setattr(loading.TransformerBridge, "boot_transformers", refuse)
    with pytest.raises(ModelError, match=r"architectures \['Qwen3ForCausalLM'\] cannot be loaded") as error:
        load(copied)
    assert one_line(error)
    assert error.value.__cause__ is raised


@pytest.mark.parametrize("where", ["nonsense", "xpu:9", "cuda:99"])
@pytest.mark.parametrize("asked", [lambda where: {"device": where}, lambda where: {"device_map": {"": where}}])
def test_a_device_this_machine_does_not_have_is_one_line(copied, asked, where):
    with pytest.raises(ModelError, match=r"cannot be used here .*such as 'cpu'"):
        load(copied, **asked(where))


def test_device_and_device_map_exclude_each_other(copied):
    with pytest.raises(ModelError, match="exclude each other"):
        load(copied, device="cpu", device_map="auto")


def test_the_device_is_the_cpu_unless_said_otherwise_and_is_recorded(tiny):
    assert tiny.origin.device == "cpu"
    assert tiny.origin.dtype == "float32"
    assert tiny.device == torch.device("cpu")


def test_loading_leaves_no_hook_behind_and_the_model_in_evaluation_mode(tiny):
    assert not any(point.fwd_hooks for point in tiny.bridge.hook_dict.values())
    assert not any(block._forward_pre_hooks for block in tiny.bridge.blocks)
    assert not tiny.bridge.original_model.training


def test_loading_prints_nothing_and_restores_the_librarys_progress_bars(tiny_dir, capfd):
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    load(tiny_dir)
    assert capfd.readouterr() == ("", "")
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before


@pytest.fixture
def hub(copied, monkeypatch) -> list[tuple[str, object]]:
    """A Hub with one repository, served from a copy of the tiny model; the list notes what was asked of it."""
    asked: list[tuple[str, object]] = []

    def model_info(self, repo_id, *, revision=None):
        asked.append(("info", revision))
        if repo_id != "someone/tiny":
            raise huggingface_hub.errors.OfflineModeIsEnabled("no such repository here")
        return SimpleNamespace(sha=COMMIT)

    def snapshot_download(repo_id, *, revision, allow_patterns, ignore_patterns):
        asked.append((revision, "*.safetensors" in allow_patterns))
        return str(copied)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_an_unpinned_hub_model_warns_and_names_the_commit(hub):
    with pytest.warns(UnpinnedRevisionWarning, match=COMMIT):
        model = load("someone/tiny", revision="main")
    assert (model.origin.name, model.origin.commit) == ("someone/tiny", COMMIT)
    assert hub == [("info", "main"), (COMMIT, False), (COMMIT, True)]


def test_a_pinned_hub_model_does_not_warn(hub):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load("someone/tiny", revision=COMMIT)
    assert model.origin.commit == COMMIT
    assert hub == [(COMMIT, False), (COMMIT, True)]


def test_weights_of_an_unsafe_hub_model_are_not_downloaded(hub, copied):
    edit(copied / "config.json", lambda values: values.update(OTHERS, auto_map={}))
    with pytest.raises(ModelError, match="auto_map"):
        load("someone/tiny", revision=COMMIT)
    assert hub == [(COMMIT, False)]


def test_a_name_that_is_neither_directory_nor_repository_says_both(hub):
    with pytest.raises(ModelError, match="no such directory, and the Hub did not serve 'someone/tinny'"):
        load("someone/tinny")


def test_a_hub_model_whose_code_is_not_needed_loads_without_it(hub, copied):
    edit(copied / "config.json", lambda values: values.update(auto_map={}))
    with pytest.warns(CodeNotRunWarning, match="someone/tiny: config.json names code"):
        assert load("someone/tiny", revision=COMMIT).origin.commit == COMMIT


def test_a_revision_of_a_directory_is_refused(copied):
    with pytest.raises(ModelError, match="revision='main' given for a directory"):
        load(copied, revision="main")


BROKEN = {
    "a number that is text": ({"hidden_size": "big"}, "hidden_size"),
    "a number that is negative": ({"num_attention_heads": -1}, "negative"),
    "fewer layers than declared": ({"num_hidden_layers": 2}, "num_hidden_layers"),
    "another architecture than the model type's": ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
}


@pytest.mark.parametrize(("change", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_wrong_setting_is_an_error_that_names_the_model(copied, change, said):
    edit(copied / "config.json", lambda values: values.update(change))
    with pytest.raises(ModelError, match=rf"^{copied.name}: .*{said}"):
        load(copied)


def test_a_config_that_is_no_object_is_said(copied):
    (copied / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"config\.json holds no object of settings"):
        load(copied)


def test_a_tensor_that_is_missing_is_never_made_up(copied):
    tensors = load_file(copied / "model.safetensors")
    lost = "model.layers.1.mlp.up_proj.weight"
    save_file({key: value for key, value in tensors.items() if key != lost}, copied / "model.safetensors")
    with pytest.raises(ModelError, match=rf"do not belong together \(missing: {lost}\)"):
        load(copied)


def test_a_tensor_of_another_shape_is_named(copied):
    edit(copied / "config.json", lambda values: values.update({"vocab_size": 100}))
    with pytest.raises(ModelError, match=r"of another shape: model\.embed_tokens\.weight"):
        load(copied)


def test_a_checkpoint_relabelled_as_another_architecture_is_named_in_a_warning(copied):
    edit(
        copied / "config.json",
        lambda values: values.update({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}),
    )
    with pytest.warns(UnusedTensorsWarning, match="q_norm.*Check that config.json"):
        load(copied)
