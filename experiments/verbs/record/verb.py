"""`dali record`: run an MoE model on prompts and write its routing as a trace file."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from dali.experiments.extras import runtime_modules
from dali.experiments.models.prompts import read_prompts, to_length
from dali.experiments.settings import read
from dali.policies.types import InputError
from dali.traces.files import check_writable

_LIBRARIES = (
    "dali.experiments.verbs.record.predictors",
    "dali.experiments.models.loading",
    "dali.runtime.record.recorder",
    "torch",
    "transformers",
)


def run(config: DictConfig, overrides: list[str]) -> None:
    """Load, record, say what was written; a run cut off keeps the steps it finished."""
    plan = _RecordingPlan(config)
    calibrating, loading, record, torch, transformers = runtime_modules(*_LIBRARIES)
    calibration = calibrating.FittedPredictors.read(config, plan.prompts)
    name, revision, trusted = read.text(config, "checkpoint"), config.revision, _flag(config, "trust_remote_code")
    model = loading.load_model(name, revision, trusted, config.device, read.text(config, "dtype"))
    record.moe_layers(model)  # a dense model is told apart before its tokenizer is looked for
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and plan.prompt + plan.generate > longest:
        raise InputError(f"prompt + generate: found {plan.prompt + plan.generate} tokens, the model takes {longest}")
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    encode = loading.load_tokenizer(config.tokenizer, name, vocabulary, revision, trusted)
    prompts = [to_length(encode(text), plan.prompt) for text in plan.prompts]
    origin = _origin(config, model, plan.seed)

    def generate(ids: list[list[int]], count: int, temperature: float) -> None:
        settings = transformers.GenerationConfig(**_settings(count, temperature, plan.top_p))
        tensor = torch.tensor(ids, device=model.device)
        model.generate(tensor, attention_mask=torch.ones_like(tensor), generation_config=settings)

    def calibrate(fitting: Any) -> None:
        """Sampling from another seed than the recording's, even if that is greedy: repetitions tell little."""
        torch.manual_seed(plan.seed + 1)
        texts = [encode(text) for text in calibration.texts]
        length = plan.prompt + (plan.generate or plan.prompt)
        bar = tqdm(total=calibration.tokens, unit="token", desc="calibration", disable=None)
        with bar, fitting.watching(model, bar.update):
            for ids, count in calibrating.batches(texts, calibration.tokens, plan.prompt, length, plan.batch):
                generate(ids, count, plan.temperature or 1.0)

    recorder = None
    progress: tqdm
    try:
        with _terminated_as_interrupted():
            predictors, note = calibration.predictors(model, origin["model"], plan.output, calibrate)
            torch.manual_seed(plan.seed)
            recorder = record.Recorder(
                model,
                plan.output,
                origin=origin | {"notes": origin["notes"] + note},
                weights=plan.weights,
                router_input=plan.router_input,
                predictors=predictors,
                on_step=lambda tokens: progress.update(tokens),
            )
            with tqdm(total=plan.tokens, unit="token", disable=None) as progress, recorder:
                for start in range(0, len(prompts), plan.batch):
                    ids = prompts[start : start + plan.batch]
                    recorder.batch(len(ids), plan.prompt, plan.generate)
                    generate(ids, plan.generate, plan.temperature)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted, {_left(recorder)}") from None
    except torch.OutOfMemoryError:
        raise InputError(f"batch: found {plan.batch}, for which memory does not suffice; {_left(recorder)}") from None
    print(f"Written: {plan.output} ({plan.tokens} tokens, {plan.output.stat().st_size / 1e6:.2f} MB)")


class _RecordingPlan:
    """What to run, checked before anything is loaded: prompts of all sequences, sizes, settings, where to write."""

    def __init__(self, config: DictConfig) -> None:
        self.output: Path = check_writable(read.text(config, "output"))
        self.batch, self.prompt = read.whole(config, "batch"), read.whole(config, "prompt")
        self.generate, self.seed = read.whole(config, "generate", 0), read.whole(config, "seed", 0)
        given = read_prompts(None if config.prompts is None else read.text(config, "prompts"))
        count = read.whole_or_none(config, "sequences") or len(given)
        if count > len(given) and (config.temperature == 0 or self.generate == 0):
            raise InputError(
                f"sequences: found {count} with {len(given)} prompts, expected at most as many: "
                "without sampling the others would be copies"
            )
        self.top_p = read.positive(config, "top_p", most=1)
        self.temperature = 0.0 if config.temperature == 0 else read.positive(config, "temperature")
        self.weights, self.router_input = _flag(config, "weights"), _flag(config, "router_input")
        self.prompts = [given[number % len(given)] for number in range(count)]
        self.tokens = count * (self.prompt + self.generate)


def _flag(config: DictConfig, name: str) -> bool:
    value = config[name]
    if not isinstance(value, bool):
        raise InputError(f"{name}: found {value!r}, expected true or false")
    return value


def _settings(generate: int, temperature: float, top_p: float) -> dict[str, Any]:
    """Arguments of transformers' GenerationConfig.

    One token more than asked for: the last one is drawn but not run, and a token has routing once it is run.
    min_new_tokens rules out the end of the text, so that the sequences of a batch stay equally long.
    """
    lengths = {"max_new_tokens": generate + 1, "min_new_tokens": generate + 1, "num_beams": 1, "pad_token_id": 0}
    if temperature == 0:
        return {"do_sample": False, **lengths}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": top_p, **lengths}


def _origin(config: DictConfig, model: Any, seed: int) -> dict[str, Any]:
    local = Path(config.checkpoint).is_dir()
    revision = None if local else getattr(model.config, "_commit_hash", None) or config.revision
    chosen = "greedy" if config.temperature == 0 else f"temperature {config.temperature}, top_p {config.top_p}"
    return {
        "model": Path(config.checkpoint).resolve().name if local else config.checkpoint,
        "revision": revision or "unknown",
        "text": "built-in prompts" if config.prompts is None else Path(config.prompts).name,
        "seed": seed,
        "notes": f"prompts of {config.prompt} tokens, then {config.generate} generated: {chosen}",
    }


def _left(recorder: Any) -> str:
    if recorder is None or recorder.written is None:
        return "nothing was recorded"
    return f"the {recorder.tokens} tokens finished are in {recorder.written}"


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """A request to end (SIGTERM) stops the run as Ctrl-C does, and keeps what was finished."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before: Callable | int | None = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
