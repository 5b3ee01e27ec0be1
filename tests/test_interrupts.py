"""Ctrl-C and a kernel's interrupt, wherever they fall, leave the model as it was (C1) and no file behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from queue import Empty

import pytest
import torch

import refusalscope as rs
from refusalscope.instrument import Instrument
from refusalscope.model import hooking
from refusalscope.optionality import answers
from refusalscope.results.files import write_text
from test_contract import state

ROOT = Path(__file__).parents[1]
ORGANISM, PROMPTS = ROOT / "data" / "organisms" / "guarded-0", ROOT / "data" / "prompts" / "organism.jsonl"
PASSED = Instrument("passed", "given")
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(rs.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
LONGEST = 240  # seconds to wait for another process on a busy machine


@contextmanager
def interrupted_in_forward(model, n: int):
    """Raises KeyboardInterrupt in the middle of the n-th forward: after the last attention, before the last MLP."""
    module, calls = vars(model.bridge.original_model.model.layers[-1].mlp.original_component), []
    whole = model.bridge.original_model.model.layers[-1].mlp.original_component.forward

    @wraps(whole)
    def broken(*args, **kwargs):
        calls.append(n)
        if len(calls) == n:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    module["forward"] = broken
    try:
        yield calls
    finally:
        del module["forward"]


CALLS = {
    "capture": lambda m, p, of: rs.capture(m, p.locate),
    "select": lambda m, p, of: rs.select(m, of["found"], p.select, of["refusal"]),
    "select, map": lambda m, p, of: rs.select(m, of["found"], p.select, of["refusal"], mode="map"),
    "cosmic": lambda m, p, of: rs.cosmic(m, of["found"], p.select),
    "ablate": lambda m, p, of: ablated(m, p, of),
    "batched placebos": lambda m, p, of: answers(m, p, of["refusal"], [rs.Attack(of["one"])], placebos=40),
    "effect": lambda m, p, of: rs.effect(rs.baseline(m, p.report, of["refusal"]), of["one"]),
    "attribution": lambda m, p, of: rs.attribution.attribution(m, of["one"], p.report, random=3),
    "diagnose": lambda m, p, of: rs.diagnose(m, p),
    "monitor": lambda m, p, of: rs.monitor(m, p),
    "measure": lambda m, p, of: rs.measure(m, p, plan="quick", instrument=PASSED),
}
AT = {"measure": (3, 25, 60), "diagnose": (2, 20), "select": (2, 4), "ablate": (1,), "batched placebos": (3, 9)}


def ablated(model, prompts, of):
    with rs.ablate(model, of["one"]):
        rs.margin(model, prompts.report, of["refusal"])


@pytest.fixture(scope="module")
def ground(guarded, prompts):
    refusal = rs.readout(guarded, prompts.locate)
    found = rs.locate.mean_difference(*rs.capture(guarded, prompts.locate))
    return {"refusal": refusal, "found": found, "one": found.at(4, -1)}


@pytest.mark.parametrize(("call", "n"), [(call, n) for call in CALLS for n in AT.get(call, (2,))])
def test_an_interruption_in_any_forward_leaves_the_model_clean(call, n, guarded, prompts, ground, capsys):
    before, margins = state(guarded), rs.margin(guarded, prompts.report, ground["refusal"])
    with pytest.raises(KeyboardInterrupt), interrupted_in_forward(guarded, n) as calls:
        CALLS[call](guarded, prompts, ground)
    assert len(calls) == n
    assert state(guarded) == before
    assert torch.equal(rs.margin(guarded, prompts.report, ground["refusal"]), margins)


def test_an_audit_that_is_interrupted_leaves_no_file(prompts, tmp_path, monkeypatch):
    from refusalscope.audit import audit
    from refusalscope.model import batching

    monkeypatch.chdir(tmp_path)
    done = []

    def broken(function, batch, whole=batching._tried):
        done.append(whole(function, batch))
        if len(done) == 4:
            raise KeyboardInterrupt
        return done[-1]

    monkeypatch.setattr(batching, "_tried", broken)
    with pytest.raises(KeyboardInterrupt):
        audit(ORGANISM, ORGANISM.with_name("relapsed-0"), prompts=prompts)
    assert len(done) == 4
    assert list(tmp_path.rglob("*")) == []


# A signal between registering a hook and noting it.


def interrupting_registration(model, monkeypatch):
    """Sends this process a real SIGINT as soon as the first hook is registered, before it is noted anywhere."""
    point = model.bridge.hook_dict[model.sites.resid_pre[0]]
    whole = point.add_hook

    def add_hook(*args, **kwargs):
        handle = whole(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)  # the interpreter handles a signal between two instructions
        return handle

    monkeypatch.setattr(point, "add_hook", add_hook)


def test_a_signal_while_hooks_are_registered_leaves_none(tiny, direction, monkeypatch):
    before = state(tiny)
    with monkeypatch.context() as patched:
        interrupting_registration(tiny, patched)
        with pytest.raises(KeyboardInterrupt), rs.ablate(tiny, direction()):
            pytest.fail("the block began although the interrupt came first")
    assert state(tiny) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_holding_it_back_such_a_signal_would_leave_one(make_tiny, monkeypatch):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = rs.load(make_tiny("llama", "LlamaForCausalLM", num_hidden_layers=2, max_position_embeddings=128, **sizes))
    monkeypatch.setattr(hooking, "uninterrupted", nullcontext)
    before = state(model)
    with monkeypatch.context() as patched:
        interrupting_registration(model, patched)
        with pytest.raises(KeyboardInterrupt), hooking.hooked(model, {model.sites.resid_pre[0]: lambda x, hook: None}):
            pass
    assert state(model) != before


def test_a_signal_is_held_back_until_the_block_ends_and_handed_to_whoever_waits_for_it():
    done = []
    with pytest.raises(KeyboardInterrupt), hooking.uninterrupted():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        done.append("the rest of the block")
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_has_nothing_to_hold_back():
    handler = []

    def work():
        with hooking.uninterrupted():
            handler.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handler == [signal.default_int_handler]


# Files.


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_an_interruption_while_a_file_is_written_leaves_the_old_one_and_no_draft(tmp_path, monkeypatch, where):
    write_text(tmp_path / "card.json", "old")

    def interrupt(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_text(tmp_path / "card.json", "new")
    assert [file.name for file in tmp_path.iterdir()] == ["card.json"]
    assert (tmp_path / "card.json").read_text() == "old"


# The real ones: a program in a terminal, and a kernel.


def test_ctrl_c_ends_a_card_with_one_line_code_130_and_no_file(tmp_path):
    words = ["card", ORGANISM, "--prompts", PROMPTS, "--out", tmp_path / "card"]
    call = [Path(sys.executable).with_name("refusalscope"), *map(str, words)]
    errors = tmp_path / "stderr.txt"
    with errors.open("w") as file:
        running = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=file, env=ENVIRONMENT, start_new_session=True)
        until(lambda: "/18" in errors.read_text() or "selection" in errors.read_text() or running.poll() is not None)
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=LONGEST)
    told = errors.read_text()
    assert running.returncode == 130, told
    assert out == b""
    assert told.splitlines()[-1] == "refusalscope: interrupted; nothing more was written"
    assert told.count("refusalscope: interrupted") == 1
    assert "Traceback" not in told
    assert not (tmp_path / "card").exists()


BEFORE = f"""
import hashlib, refusalscope as rs
model, prompts = rs.load({str(ORGANISM)!r}), rs.ContrastSet.read({str(PROMPTS)!r})
core = model.bridge.original_model
def state():
    digest = hashlib.sha256()
    for name, value in (*core.named_parameters(), *core.named_buffers()):
        digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    modules = (*core.modules(), *model.bridge.modules())
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]
    return digest.hexdigest(), hooks, sum(len(point.fwd_hooks) for point in model.bridge.hook_dict.values())
refusal = rs.readout(model, prompts.locate)
before, margins = state(), rs.margin(model, prompts.report, refusal)
"""
AFTER = """
same = rs.margin(model, prompts.report, refusal)
assert state() == before and before[2] == 0 and (same == margins).all()
print("clean")
"""


@pytest.fixture
def kernel():
    """A running Jupyter kernel, and a client to it."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=ENVIRONMENT)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=LONGEST)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_a_kernel_that_is_interrupted_in_a_measurement_goes_on_with_a_clean_model(kernel):
    manager, client = kernel
    assert said(client, client.execute(BEFORE))[0] == "ok"
    asked = client.execute("rs.measure(model, prompts)")
    until(lambda: "selection" in heard(client, asked))
    manager.interrupt_kernel()
    assert said(client, asked) == ("KeyboardInterrupt", "")
    assert said(client, client.execute(AFTER)) == ("ok", "clean\n")


def heard(client, asked: str) -> str:
    """What the kernel wrote next on stderr; empty where it wrote nothing."""
    try:
        message = client.get_iopub_msg(timeout=1)
    except Empty:
        return ""
    told = message["content"].get("text", "") if message["parent_header"].get("msg_id") == asked else ""
    assert message["msg_type"] != "error", message["content"]
    return told


def said(client, asked: str) -> tuple[str, str]:
    """How a cell ended: "ok" or the error's name, and what it printed."""
    printed = ""
    while True:
        message = client.get_iopub_msg(timeout=LONGEST)
        if message["parent_header"].get("msg_id") != asked:
            continue
        content = message["content"]
        printed += content["text"] if content.get("name") == "stdout" else ""
        if content.get("execution_state") == "idle":
            break
    while (reply := client.get_shell_msg(timeout=LONGEST))["parent_header"].get("msg_id") != asked:
        pass
    return ("ok" if reply["content"]["status"] == "ok" else reply["content"]["ename"]), printed


def until(found, seconds: float = LONGEST) -> None:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
