"""Published rows: what a file has to be, and what the words in it mean."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import fields, replace

import pytest

from dali.experiments.verbs.backtest import refusing
from dali.experiments.verbs.backtest.case import (
    AllGpu,
    CopyRule,
    CpuLayers,
    FitMemory,
    GpuLayers,
    Hot,
    MeasuredCase,
    Refusal,
    Share,
    SlotCache,
)
from dali.experiments.verbs.backtest.rows import COLUMNS, PUBLISHED, Row, read_rows
from dali.experiments.verbs.backtest.understand import understood
from dali.policies.types import InputError

EMPTY = dict.fromkeys((field.name for field in fields(Row)), "")
PLAIN = Row(
    **EMPTY
    | {"id": "S.01", "source": "ggml-org/llama.cpp PR #1", "model": "Qwen3-30B-A3B", "quant": "Q4_K_M", "batch": "1"}
    | {"gpu": "RTX 3090", "cpu": "Ryzen 9 7950X", "prefill_tps": None, "decode_tps": 20.0}
)


def case(**changes) -> MeasuredCase:
    (found,) = understood([replace(PLAIN, **changes)])
    assert isinstance(found, MeasuredCase), found
    return found


def refused(**changes) -> Refusal:
    (found,) = understood([replace(PLAIN, **changes)])
    assert isinstance(found, Refusal), found
    return found


# ---- the file --------------------------------------------------------------------------------------


def write(path, rows, columns=COLUMNS, encoding="utf-8"):
    with open(path, "w", newline="", encoding=encoding) as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)
    return path


GOOD = {"id": "A.01", "model": "m", "decode_tps": "12.5"}


def test_columns_in_any_order_others_ignored_and_a_byte_order_mark(tmp_path):
    path = write(tmp_path / "rows.csv", [GOOD | {"more": "x"}], ["more", *reversed(COLUMNS)], "utf-8-sig")
    (row,) = read_rows(path)
    assert (row.id, row.series, row.model, row.decode_tps, row.prefill_tps) == ("A.01", "A", "m", 12.5, None)


@pytest.mark.parametrize(
    ("text", "speed"),
    [("12.5", 12.5), ("~12", 12), ("1,234.5", 1234.5), ("20 t/s", 20), ("20 ± 0.3", 20), ("not said", None)],
)
def test_speeds_as_people_write_them(tmp_path, text, speed):
    (row,) = read_rows(write(tmp_path / "rows.csv", [GOOD | {"decode_tps": text}]))
    assert row.decode_tps == speed


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ["no rows"]),
        ([GOOD, GOOD], ["id 'A.01' twice"]),
        ([GOOD | {"id": ""}], ["row 1", "no id"]),
        ([GOOD, GOOD | {"id": "A.02", "prefill_tps": "fast"}], ["row 2 (A.02): prefill_tps: found 'fast'"]),
        *(([GOOD | {"decode_tps": text}], ["above 0"]) for text in ("0", "-3", "nan", "inf", "1e999")),
    ],
)
def test_tables_that_are_refused_as_a_whole(tmp_path, rows, words):
    with pytest.raises(InputError) as error:
        read_rows(write(tmp_path / "rows.csv", rows))
    assert "\n" not in str(error.value)
    for word in ("rows.csv", *words):
        assert word in str(error.value)


def test_files_that_are_no_table(tmp_path):
    path = tmp_path / "rows.csv"
    for content, words in (
        (b"id,model\nA.01,m\n", "found no column source"),
        (b"", "found no table"),
        (f"{','.join(COLUMNS)}\nA.01\n".encode(), "row 1: found 1 cells, expected 20"),
        (",".join([*COLUMNS, "id"]).encode() + b"\nx\n", "expected each once"),
        ("id,modèle\n".encode("latin-1"), "not a UTF-8 text"),
        (f'{",".join(COLUMNS)}\n"A.01'.encode(), "found no table"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=words):
            read_rows(path)
    with pytest.raises(InputError, match="no such file"):
        read_rows(tmp_path / "none.csv")


# ---- where the experts are -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knob", "value", "expected"),
    [
        ("placement", "exps=CPU", CpuLayers()),
        ("placement", '-ot ".ffn_.*_exps.=CPU"', CpuLayers()),
        ("tool", "llama.cpp cpu-moe", CpuLayers()),
        ("cpu-moe", "on (3.5 GB)", CpuLayers()),
        ("cpu-moe", "off (12.3 GB)", AllGpu()),
        ("prompt_tokens/cpu-moe", "3440", CpuLayers()),
        ("placement", "all experts CPU, 1 GPU", CpuLayers()),
        ("n_cpu_moe", "38", CpuLayers(38)),
        ("n_cpu_moe", "48 (all)", CpuLayers()),
        ("n_cpu_moe", "all", CpuLayers()),
        ("n_cpu_moe", "48, ub 2048", CpuLayers(48)),
        ("n_cpu_moe; context", "40", CpuLayers(40)),
        ("n_cpu_moe", "0", AllGpu()),
        ("placement", "n_cpu_moe 36 (all; given as 64)", CpuLayers()),
        ("quant+placement", "Q4_K_M n_cpu_moe 24 of 40", CpuLayers(24, 40)),
        ("placement", "--n-cpu-moe 20", CpuLayers(20)),
        ("placement", "-ncmoe 99", CpuLayers()),
        ("prompt_tokens/n_cpu_moe 27", "85", CpuLayers(27)),
        ("prompt_tokens / 43 of 48 layers on CPU", "256", CpuLayers(43, 48)),
        ("free_mib; expert layers on CPU", "9344; 37/40 Qwen3.6", CpuLayers(37, 40)),
        ("placement", "12 first + 10 last layers on GPUs", CpuLayers(on_gpu=22)),
        ("placement", "ngl 38 of 48", GpuLayers(38, 48)),
        ("placement", "-ngl 14", GpuLayers(14)),
        ("ngl", "14", GpuLayers(14)),
        ("placement", "ngl 48/48", AllGpu()),
        ("placement", "ngl 99, exps=CPU", CpuLayers()),
        ("tool", "ollama default", GpuLayers()),
        ("tool", "llama.cpp tuned", FitMemory()),
        ("placement", "Q8_0 --fit", FitMemory()),
        ("tier", "static layers", FitMemory()),
        ("hot experts a layer (static from profile)", "124 of 256 (9.0 GB)", Hot(124, 256)),
        ("hot experts a layer (static from profile)", "0 (n_cpu_moe 99)", CpuLayers()),
        ("hot experts a layer", "36", Hot(36)),
        ("hot experts a layer", "0", CpuLayers()),
        ("gpu_experts_share_pct/front-loading", "30", Share(0.3, "front-loading")),
        ("gpu_experts_share_pct/random", "1", Share(0.01, "random")),
        ("share of experts on the GPU", "40 %", Share(0.4, "uniform")),
        ("gpu_experts_ratio/frequency", "0.4", Share(0.4, "frequency")),
        ("kt-num-gpu-experts", "100", Share(None, "uniform", 100)),
        ("LRU slots a layer (of 512)", "48", SlotCache(slots=48, of=512)),
        ("LRU slots a layer (of 512)", "0", CpuLayers()),
        ("LRU slots a layer of 384 matrices (3 x 128)", "24", SlotCache(slots=24, of=384, of_matrices=True)),
        ("share of free VRAM (slots a layer)", "45 % (186)", SlotCache(slots=186)),
        ("cache MB (share)", "4096 (24 %)", SlotCache(gb=4.096, share=0.24)),
        ("placement", "pack, 12 GB cache", SlotCache(gb=12)),
        ("prompt; expert cache 1.9 GiB (2.4 %)", "256", SlotCache(gb=1.9 * 1.073741824, share=0.024)),
        ("prompt; expert cache off", "256", CpuLayers()),
        ("expert cache", "off", CpuLayers()),
        ("expert cache", "auto, about 57 % hit", SlotCache(hit=0.57)),
        ("tier", "LRU cache", SlotCache()),
        ("backend", "offload (all misses copied)", SlotCache(misses="copied")),
        ("backend", "hybrid (1.07 copied + 3.19 CPU a layer)", SlotCache(misses="both", copied=1.07, on_cpu=3.19)),
    ],
)
def test_placements(knob, value, expected):
    found = case(knob=knob, knob_value=value)
    assert found.placement == expected
    assert found.assumed == ()


def test_what_is_not_said_is_what_people_get_who_set_nothing():
    for source, expected in (
        ("ggml-org/llama.cpp", FitMemory()),
        ("turboderp-org/exllamav3", FitMemory()),
        ("kvcache-ai/ktransformers", Share(None, "uniform")),
        ("FlashML-org/FreeToken", SlotCache()),
    ):
        found = case(source=source)
        assert found.placement == expected
        assert len(found.assumed) == 1
        assert "not said" in found.assumed[0]


def test_gpu_memory_that_was_used_free_or_left():
    used = case(knob="fit_target_mib (VRAM used)", knob_value="1536 (14269)").placement
    assert used == FitMemory(gb=pytest.approx(14269 * 2**20 / 1e9))
    assert case(knob="fit_target_mib", knob_value="1536").placement == FitMemory(
        None, pytest.approx(1536 * 2**20 / 1e9)
    )
    arms = "unslothai/unsloth issue #1 (arm A = planner -ot, arm B = llama.cpp --fit)"
    row = {"source": arms, "knob": "free_mib; expert layers on CPU (arm A)", "knob_value": "9344; 37/40 Qwen3.6"}
    assert case(**row, notes="arm A").placement == CpuLayers(37, 40)
    assert case(**row, notes="arm B").placement == FitMemory(gb=pytest.approx(9344 * 2**20 / 1e9))


def test_hits_that_were_measured():
    lru = {"knob": "LRU slots a layer (of 512)", "knob_value": "64"}
    found = case(**lru, notes="28 expert layers on host; measured LRU hit: 64 slots 67 %, 128 slots 81 %").placement
    assert found == SlotCache(slots=64, of=512, hit=0.67, curve=((64, 0.67), (128, 0.81)), cpu_layers=28)
    notes = "real prose; 62.0 % hit at 186 slots, engine 62.7 % (93 slots 43.5, 279 72.0, 512 85.0)"
    found = case(knob="slots a layer", knob_value="100", notes=notes).placement
    assert found == SlotCache(slots=100, curve=((93, 0.435), (186, 0.62), (279, 0.72), (512, 0.85)))
    found = case(knob="backend", knob_value="offload", notes="1,024 slots, 48 layers; TTFT 3.885 s, miss 69.13 %")
    assert found.placement == SlotCache(slots=1024 / 48, misses="copied", hit=0.3087)
    found = case(source="FlashML-org/FreeToken", notes="miss 5.5-7.8 % at 36.6 % residency")
    assert found.placement == SlotCache(share=0.366, hit=0.9335)


# ---- engines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "engine"),
    [
        ({"source": "ikawrakow/ik_llama.cpp PR #698"}, "ik_llama_cpp"),
        ({"source": "ikawrakow/ik_llama.cpp", "knob": "engine/exps=CPU", "knob_value": "llama.cpp"}, "llama_cpp"),
        ({"source": "somebody's blog", "quant": "IQ3_KS"}, "ik_llama_cpp"),
        ({"source": "somebody's blog", "knob": "context depth, ik_llama.cpp", "knob_value": "1"}, "ik_llama_cpp"),
        ({"source": "kvcache-ai/ktransformers doc"}, "ktransformers"),
        ({"source": "turboderp-org/exllamav3 issue"}, "exllamav3"),
        ({"source": "somebody's blog", "quant": "exl3 4.05 bpw"}, "exllamav3"),
        ({"source": "kekzl/imp PR #1"}, "imp"),
        ({"source": "BrianBoitano/nvmoe", "knob": "placement", "knob_value": "ngl 14"}, "llama_cpp"),
        ({"source": "FlashML-org/FreeToken PR"}, "freetoken"),
        ({"source": "thecodacus/llama.cpp PR #5"}, "llama_cpp"),
        ({"source": "noonghunna/club-3090 docs"}, "llama_cpp"),
        ({"source": "a page", "knob": "tool", "knob_value": "ollama default"}, "llama_cpp"),
        ({"source": "a page", "quant": "", "knob": "cpu-moe", "knob_value": "on"}, "llama_cpp"),
    ],
)
def test_engines(changes, engine):
    assert case(**changes).engine == engine


def test_engines_without_constants_are_refused_by_name():
    for source in ("vllm-project/vllm PR #1", "vinicius-ianni/shimmy docs", "danveloper/flash-moe PR #7"):
        found = refused(source=source, knob="cpu-moe", knob_value="on")
        assert found.category == refusing.ENGINE
        assert found.detail in source
    assert refused(source="somebody", quant="4 bit").category == refusing.ENGINE


# ---- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "category"),
    [
        ({"decode_tps": None}, refusing.NO_SPEED),
        ({"notes": "model larger than RAM: disk reads"}, refusing.DISK),
        ({"notes": "RAM about the size of the model: disk-bound"}, refusing.DISK),
        ({"notes": "experts on NVMe"}, refusing.DISK),
        ({"knob": "machine", "knob_value": "RTX 4090, 64 GB, NVMe 7 GB/s"}, refusing.DISK),
        ({"knob": "cache MB", "knob_value": "4096 demand", "pcie": "NVMe 4.0 x4"}, refusing.DISK),
        ({"knob_value": "UVM, prefer GPU"}, refusing.PAGING),
        ({"knob": "n_cpu_moe", "knob_value": "0 (spills, Windows)"}, refusing.PAGING),
        ({"model": "Nemotron-30B / Gemma-4-26B"}, refusing.SEVERAL),
        ({"model": "not said"}, refusing.MODEL),
        ({"notes": "greedy, with drafter"}, refusing.DRAFTER),
        ({"knob": "MTP", "knob_value": "on"}, refusing.DRAFTER),
    ],
)
def test_reasons(changes, category):
    found = refused(**changes)
    assert found.category == category
    assert found.reason.startswith(category)


@pytest.mark.parametrize(
    "changes",
    [
        {"notes": "model fits, no disk reads"},
        {"notes": "without drafter, MTP off"},
        {"knob": "MTP", "knob_value": "off"},
        {"knob": "placement", "knob_value": "exps=CPU", "pcie": "5.0 card; NVMe 4.0 x4"},
    ],
)
def test_what_is_denied_or_of_no_account_is_no_reason(changes):
    assert case(**changes).decode.tokens_per_s == 20


def test_an_engine_whose_constants_nobody_published_is_refused():
    """Of nvmoe's own cache all published rows have experts on a disk, so that nothing could be fitted."""
    found = refused(source="BrianBoitano/nvmoe", knob="placement", knob_value="pack, 12 GB cache")
    assert (found.category, found.detail) == (refusing.ENGINE, "nvmoe")


def test_a_drafter_leaves_the_prefill():
    found = case(notes="greedy, with drafter", prefill_tps=436.0, prompt="512")
    assert found.decode is None
    assert found.prefill.tokens_per_s == 436
    assert found.left_out == ("decode: with drafter",)


# ---- what was timed --------------------------------------------------------------------------------


def test_prompts_passes_and_depths():
    found = case(prefill_tps=100.0, prompt="4096", knob="n_ubatch/exps=CPU", knob_value="256", batch="pp")
    assert (found.prefill.prompt, found.prefill.ubatch, found.batch) == (4096, 256, 1)
    found = case(prefill_tps=100.0, knob="prompt_tokens / 43 of 48 layers on CPU", knob_value="512", notes="chunk 2048")
    assert (found.prefill.prompt, found.prefill.ubatch, found.decode.depth) == (512, 2048, 512)
    found = case(prefill_tps=100.0, knob="prompt; expert cache off", knob_value="1024")
    assert found.prefill.prompt == found.decode.depth == 1024
    assert case(knob="prompt; expert cache off", knob_value="tg128").decode.depth == 0
    assert case(knob="context depth, llama.cpp", knob_value="16384").decode.depth == 16384
    assert case(knob="context depth", knob_value="16k").decode.depth == 16384
    assert case(knob="n_cpu_moe", knob_value="48, ub 2048", prefill_tps=1.0, prompt="512").prefill.ubatch == 2048
    found = case(context="65536", notes="20 threads, KV q8_0")
    assert (found.context, found.kv, found.threads, found.decode.depth) == (65536, "q8_0", 20, 0)
    found = case(prefill_tps=100.0, knob="n_cpu_moe", knob_value="20", notes="llama-bench")
    assert (found.prefill.prompt, found.prefill.ubatch) == (512, None)
    assert found.assumed == ("prompt not said: 512 tokens, as llama-bench reads",)


def test_prefill_of_a_prompt_that_is_not_said_is_left_out():
    """Copies of experts are spread over it: 34 and 383 tokens/s were both published for one model and one card."""
    found = case(prefill_tps=100.0, knob="n_cpu_moe", knob_value="20")
    assert found.prefill is None
    assert found.decode is not None
    assert found.left_out == ("prefill: length of the prompt not said",)
    alone = refused(prefill_tps=100.0, decode_tps=None, knob="n_cpu_moe", knob_value="20")
    assert alone.category == refusing.PROMPT


def test_copies_of_a_pull_request_from_before_active_ones_are_of_whole_layers():
    pp = {"prefill_tps": 100.0, "decode_tps": None, "prompt": "4096"}
    assert case(source="ikawrakow/ik_llama.cpp PR #520", **pp).copy_rule.copies == "all"
    assert case(source="ikawrakow/ik_llama.cpp PR #698", **pp).copy_rule.copies is None


def test_copy_rules():
    both = "main copies from 32 tokens, pr from 1024"
    pp = {"knob": "prompt_tokens", "knob_value": "16", "batch": "pp", "prefill_tps": 7.8, "decode_tps": None}
    assert case(id="R1-pr.01", notes=both, **pp).copy_rule == CopyRule(1024)
    assert case(id="R1-main.01", notes=both, **pp).copy_rule == CopyRule(32)
    assert case(id="R1-main.01", notes=both, **pp).prefill.ubatch == 16
    assert case(notes="experts copied to the GPU from 32 tokens on").copy_rule == CopyRule(32)
    assert case(notes="experts copied from 341 tokens on, below that computed by the CPU").copy_rule == CopyRule(341)
    assert case(notes="all experts of a layer are copied").copy_rule == CopyRule(None, "all")
    assert case(notes="only activated experts are copied").copy_rule == CopyRule(None, "active")
    assert case(knob="nopo", knob_value="1").copy_rule == CopyRule(None, "never")
    assert case().copy_rule == CopyRule()


def test_sequences_at_once():
    assert case(knob="streams", knob_value="8").batch == 8
    assert case(batch="4").batch == 4
    found = case(batch="ShareGPT, concurrency not said")
    assert found.batch is None
    assert not found.absolute


# ---- machines, formats, models ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "absolute"),
    [
        ({}, True),
        ({"cpu": "not said (author's two machines: 7950X, 5975WX)"}, False),
        ({"cpu": "not said (WSL2; host read 62.5 GB/s)", "ram_gbs": "62.5"}, True),
        ({"cpu": "18 threads, model not said", "ram_gbs": "~51.2"}, True),
        ({"cpu": "cloud server, 8ch"}, False),
        ({"cpu": "2x Xeon, one channel each"}, False),
        ({"cpu": "Xeon Gold 6454S (sockets not said)"}, True),
        ({"cpu": "Grace", "gpu": "GH200"}, True),
        ({"gpu": "not said, 8 GB used"}, False),
        ({"gpu": "2 GPUs, not said"}, False),
        ({"gpu": "A100"}, True),
        ({"notes": "compare ratios within the series"}, False),
    ],
)
def test_speeds_count_by_themselves_where_the_machine_is_named(changes, absolute):
    assert case(**changes).absolute is absolute


def test_the_knob_says_which_of_two_it_is():
    both = {"quant": "Q8_0 / Q4_K_M", "bits_per_weight": "8.52 / 5.08", "knob": "quant+placement"}
    found = case(**both, knob_value="Q4_K_M n_cpu_moe 24 of 40")
    assert (found.quant, found.bits_per_weight) == ("Q4_K_M", 5.08)
    found = case(**both, knob_value="Q8_0 exps=CPU")
    assert (found.quant, found.bits_per_weight) == ("Q8_0", 8.52)
    assert refused(**both, knob_value="exps=CPU").category == refusing.SEVERAL
    two = "Qwen3.6-35B-A3B / GLM-4.7-Flash"
    knob = "free_mib; expert layers on CPU"
    assert case(model=two, knob=knob, knob_value="11008; 39/46 GLM-4.7-Flash").model == "GLM-4.7-Flash"
    assert case(model=two, knob=knob, knob_value="9344; 37/40 Qwen3.6").model == "Qwen3.6-35B-A3B"
    assert case(quant="", knob="quant", knob_value="IQ4_XS").quant == "IQ4_XS"
    assert case(model="DeepSeek-V4-Flash 85 GB", quant="").model_gb == 85


# ---- the rows that are shipped ---------------------------------------------------------------------


def test_shipped_rows_are_read_whole():
    rows = read_rows(PUBLISHED)
    assert len(rows) == 214
    assert len({row.series for row in rows}) == 55
    assert all(row.source for row in rows)
    found = understood(rows)
    assert [each.id for each in found] == [row.id for row in rows]
    assert Counter(each.category for each in found if isinstance(each, Refusal)) == {
        refusing.DISK: 23,
        refusing.NO_SPEED: 7,
        refusing.ENGINE: 5,
        refusing.PAGING: 4,
        refusing.DRAFTER: 2,
    }
    for each in found:
        if isinstance(each, MeasuredCase):
            assert each.prefill is not None or each.decode is not None
