"""Directories that would run code or read elsewhere: a typed error, and a sentinel that proves nothing of them ran.

Every directory here is booby-trapped in all the ways at once, whatever else is wrong with it.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
import warnings
from pathlib import Path

import jinja2
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from refusalscope import cli
from refusalscope.errors import ModelError
from refusalscope.model import CodeNotRunWarning, batches, forward, load
from refusalscope.model.source import Source
from refusalscope.model.without_code import without_code

PROMPTS = Path(__file__).parents[1] / "data" / "prompts" / "organism.jsonl"
ENDS = "{{ messages[-1]['content'] }}<|im_end|>"


class Bomb:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path) -> Path:
    """What every trap makes when it goes off."""
    return tmp_path / "ran"


@pytest.fixture
def trapped(tiny_dir, tmp_path, marker) -> Path:
    """A copy of the tiny model with code in every place where a loader might look for it."""
    folder = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    for name in ("evil.py", "configuration_qwen3.py", "modeling_qwen3.py", "tokenization_qwen3.py", "__init__.py"):
        (folder / name).write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.pkl"):
        (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    return folder


def change(file: Path, **values) -> None:
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**before, **values}))


def names_code(file: str, *, inside: bool, needed: bool = True):
    """Names code in a file, top level or deep; ``needed`` where transformers has no such architecture itself."""

    def arm(folder: Path, marker: Path) -> None:
        code = {"auto_map": dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "evil.Evil")}
        change(folder / file, **({"more_settings": {"deeper": [code]}} if inside else code))
        if needed:
            change(folder / "config.json", model_type="evil", architectures=["EvilForCausalLM"])

    return arm


def names_a_kernel(key: str, value):
    return lambda folder, marker: change(folder / "config.json", **{key: value})


def only_a_pickle(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()


def a_pickle_called_safetensors(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(marker)))


def sharded(folder: Path, *, second: str) -> None:
    """Two whole shards, the second wherever it is told to be, as an index would have it."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    (folder / "model.safetensors").unlink()
    shards = {"model-1.safetensors": names[:9], second: names[9:]}
    for shard, members in shards.items():
        (folder / shard).parent.mkdir(exist_ok=True)
        save_file({name: weights[name] for name in members}, folder / shard, metadata={"format": "pt"})
    table = {name: shard for shard, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def a_shard_outside(folder: Path, marker: Path) -> None:
    sharded(folder, second="../outside.safetensors")


def a_shard_by_its_whole_path(folder: Path, marker: Path) -> None:
    sharded(folder, second=str(folder.parent / "outside.safetensors"))


def a_shard_in_a_subfolder(folder: Path, marker: Path) -> None:
    sharded(folder, second="parts/inside.safetensors")


def a_pickled_shard(folder: Path, marker: Path) -> None:
    sharded(folder, second="model-2.safetensors")
    (folder / "model-2.safetensors").write_bytes(pickle.dumps(Bomb(marker)))


def a_shard_that_is_a_pickle_by_name(folder: Path, marker: Path) -> None:
    sharded(folder, second="model-2.safetensors")
    text = (folder / "model.safetensors.index.json").read_text()
    (folder / "model.safetensors.index.json").write_text(text.replace("model-2.safetensors", "pytorch_model.bin"))


def cut_off(folder: Path, marker: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def a_shard_cut_off(folder: Path, marker: Path) -> None:
    sharded(folder, second="model-2.safetensors")
    content = (folder / "model-2.safetensors").read_bytes()
    (folder / "model-2.safetensors").write_bytes(content[:-100])


def no_template(folder: Path, marker: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def hostile(marker: Path) -> str:
    return f"{{{{ cycler.__init__.__globals__.os.system('touch {marker}') }}}}{ENDS}"


def a_template_that_runs_code(folder: Path, marker: Path) -> None:
    (folder / "chat_template.jinja").write_text(hostile(marker))


def the_same_in_the_settings(folder: Path, marker: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    change(folder / "tokenizer_config.json", chat_template=hostile(marker))


def a_template_that_reads_files(folder: Path, marker: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% include 'config.json' %}" + ENDS)


UNSAFE = {
    "only pickled weights": (only_a_pickle, "which run code when opened"),
    "a pickle called model.safetensors": (a_pickle_called_safetensors, "model.safetensors is damaged or cut off"),
    "a pickled shard": (a_pickled_shard, "model-2.safetensors is damaged or cut off"),
    "a shard that is a pickle by name": (a_shard_that_is_a_pickle_by_name, "points at 'pytorch_model.bin'"),
    "code named in the configuration": (names_code("config.json", inside=False), "names code to run"),
    "code named deep in the configuration": (names_code("config.json", inside=True), "names code to run"),
    "code named for the tokenizer": (names_code("tokenizer_config.json", inside=False), "names code to run"),
    "code named for generation": (names_code("generation_config.json", inside=True), "names code to run"),
    "code named for a processor": (names_code("processor_config.json", inside=True), "names code to run"),
    "code named in a versioned configuration": (names_code("config.4.0.0.json", inside=False), "names code to run"),
    "an attention kernel": (names_a_kernel("attn_implementation", "someone/kernel"), "kernel to download"),
    "the same under its inner name": (names_a_kernel("_attn_implementation_internal", "a/b:c"), "kernel to download"),
    "kernels by part": (names_a_kernel("_experts_implementation", {"": "someone/kernel@v1"}), "kernel to download"),
    "a kernel deep down": (names_a_kernel("sub", [{"attn_implementation": "a/b"}]), "kernel to download"),
    "a shard outside": (a_shard_outside, "points at '../outside.safetensors'"),
    "a shard by its whole path": (a_shard_by_its_whole_path, "points at '/"),
    "a shard in a subfolder": (a_shard_in_a_subfolder, "points at 'parts/inside.safetensors'"),
    "weights cut off": (cut_off, "model.safetensors is damaged or cut off"),
    "a shard cut off": (a_shard_cut_off, "model-2.safetensors is damaged or cut off"),
    "no chat template": (no_template, "no chat template"),
    "a template that runs code": (a_template_that_runs_code, "SecurityError"),
    "the same in the tokenizer's settings": (the_same_in_the_settings, "SecurityError"),
    "a template that reads files": (a_template_that_reads_files, "cannot be rendered"),
}


@pytest.mark.parametrize(("arm", "said"), UNSAFE.values(), ids=UNSAFE.keys())
def test_an_unsafe_directory_is_refused_in_one_line_and_nothing_of_it_runs(trapped, marker, arm, said):
    arm(trapped, marker)
    with pytest.raises(ModelError) as error:
        load(trapped)
    assert said in str(error.value)
    assert str(error.value).startswith("model: ")
    assert "\n" not in str(error.value)
    assert not marker.exists()


ON_THE_COMMAND_LINE = {
    "only pickled weights": ("pytorch_model.bin", "Save it with safe_serialization=True."),
    "code named in the configuration": ("config.json has the key 'auto_map'", "Use a model without it."),
    "a shard outside": ("model.safetensors.index.json points at '../outside.safetensors'", "Save the model again."),
    "weights cut off": ("model.safetensors is", "Copy or download it again."),
    "a shard cut off": ("model-2.safetensors is", "Copy or download it again."),
    "no chat template": ("tokenizer has no chat template", "--chat-template chat_template.jinja"),
}


@pytest.mark.parametrize("name", ON_THE_COMMAND_LINE)
def test_on_the_command_line_a_bad_directory_is_one_line_with_the_file_and_what_to_do(trapped, marker, tmp_path, name):
    UNSAFE[name][0](trapped, marker)
    words = ["select", str(trapped), "--prompts", str(PROMPTS), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, words)
    assert isinstance(result.exception, SystemExit), "an error nobody anticipated shows its traceback"
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("refusalscope: model: ")
    assert all(said in line for said in ON_THE_COMMAND_LINE[name])
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


PLACES = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "processor_config.json",
    "config.4.0.0.json",
)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("file", PLACES)
def test_code_that_is_not_needed_is_not_run_wherever_it_is_named(trapped, marker, file, inside):
    names_code(file, inside=inside, needed=False)(trapped, marker)
    with pytest.warns(CodeNotRunWarning, match=f"model: {file} names code that was not run"):
        model = load(trapped)
    assert model.origin.code_not_run
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore::refusalscope.model.without_code.CodeNotRunWarning")
def test_code_named_everywhere_at_once_is_not_run_and_changes_nothing(trapped, marker, tiny):
    for file in PLACES:
        names_code(file, inside=True, needed=False)(trapped, marker)
        change(trapped / file, trust_remote_code=True, custom_pipelines={"evil": {"impl": "evil.Evil"}})
        names_code(file, inside=False, needed=False)(trapped, marker)
    model = load(trapped)
    assert not marker.exists()
    assert (model.origin.weights, model.origin.tokenizer) == (tiny.origin.weights, tiny.origin.tokenizer)
    rows = model.encode(["one two", "three"])
    (batch,) = batches(model, rows, batch_size=2)
    assert torch.equal(forward(model, batch), forward(tiny, batch))


def test_the_copy_without_code_has_no_module_no_pickle_and_no_such_key(trapped, marker):
    for file in PLACES:
        names_code(file, inside=True, needed=False)(trapped, marker)
    with warnings.catch_warnings(action="ignore"), without_code(Source(trapped, "model", None)) as clean:
        entries = {entry.name for entry in clean.directory.iterdir()}
        assert {entry.rpartition(".")[2] for entry in entries} <= {"json", "jinja", "safetensors", "txt", "model"}
        assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= entries
        for entry in clean.directory.glob("*.json"):
            assert "evil" not in entry.read_text(), entry
    assert not clean.directory.exists()
    assert not marker.exists()


def test_a_whole_directory_loads_and_none_of_the_code_beside_it_runs(trapped, marker):
    model = load(trapped)
    assert model.template.suffix
    assert not marker.exists()


def test_a_whole_model_in_two_shards_beside_each_other_loads(trapped, marker):
    sharded(trapped, second="model-2.safetensors")
    load(trapped)
    assert not marker.exists()


def test_an_ordinary_attention_setting_is_no_kernel(trapped):
    change(trapped / "config.json", attn_implementation="flash_attention_2")
    load(trapped)


def test_every_trap_goes_off_when_something_steps_on_it(trapped, marker, monkeypatch, tmp_path):
    """The control: the sentinel would have been seen."""

    def went_off() -> bool:
        there = marker.exists()
        marker.unlink(missing_ok=True)
        return there

    for file in sorted(trapped.rglob("*.py")):
        spec = importlib.util.spec_from_file_location("stepped_on", file)
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        assert went_off(), file
    for file in (entry for entry in trapped.iterdir() if entry.suffix in (".bin", ".pt", ".pkl")):
        pickle.loads(file.read_bytes())
        assert went_off(), file
    jinja2.Environment().from_string(hostile(marker)).render(messages=[{"content": ""}])
    assert went_off()
    names_code("config.json", inside=False, needed=False)(trapped, marker)
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(AttributeError, match="Evil"):  # the module has run by then, and holds no such class
        transformers.AutoConfig.from_pretrained(trapped, trust_remote_code=True)
    assert went_off()


@pytest.mark.parametrize("outside", ["../outside.safetensors", "/outside.safetensors"])
def test_the_shards_outside_that_are_refused_would_have_been_read(trapped, outside):
    """The control: they are there, whole, and Hugging Face's own loader takes them."""
    place = outside if outside.startswith("..") else str(trapped.parent / "outside.safetensors")
    sharded(trapped, second=place)
    whole = transformers.AutoModelForCausalLM.from_pretrained(trapped)
    assert whole.config.model_type == "qwen3"
