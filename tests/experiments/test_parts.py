"""Machines composed of parts: the tables, names, the platform that comes of them, and settings."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import TOY

import dali
from dali import conf
from dali.experiments.cli import main
from dali.experiments.parts import links, machine, memory
from dali.experiments.parts.catalogue import ISAS, cpu, cpus, gpu, gpus
from dali.experiments.parts.memory import Ram
from dali.experiments.settings import folders
from dali.experiments.settings.compose import configuration
from dali.experiments.settings.objects import believed_platform, make
from dali.experiments.verbs.sweep.points import Experiment
from dali.experiments.verbs.sweep.request import request
from dali.policies.costs.roofline import Platform
from dali.policies.types import InputError

TABLES = Path(conf.__file__).parent / "parts"
PARTS = ["gpu=rtx_5080", "cpu=ryzen_9950x", "ram=ddr5_4800x2", "link=pcie5_x16"]

# ---- tables ------------------------------------------------------------------------------------------


def rows(name: str) -> list[dict[str, str]]:
    with (TABLES / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_there_are_enough():
    assert len(gpus()) >= 40
    assert len(cpus()) >= 25


def test_every_part_is_sourced_and_its_title_names_it_alone():
    known = {row["name"] for row in rows("sources")}
    for table in (gpus(), cpus()):
        assert {name for name, each in table.items() if not set(each.source) <= known} == set()
        assert len({each.title for each in table.values()}) == len(table)


def test_every_source_is_used_and_says_what_it_is():
    used = {source for each in [*gpus().values(), *cpus().values()] for source in each.source}
    assert used == {row["name"] for row in rows("sources")}
    assert all(len(row["title"]) > 20 for row in rows("sources"))


@pytest.mark.parametrize(("table", "checked"), [("cpu", 300), ("gpu", 140)])
def test_what_was_not_checked_is_named(table, checked):
    assert all(set(row["recalled"].split(";")) <= {"", *row} for row in rows(table))
    assert all(row[cell] for row in rows(table) for cell in row["recalled"].split(";") if cell)
    assert sum(not row["recalled"] for row in rows(table)) >= checked


def test_figures_that_data_sheets_correct():
    # Intel ARK: four sockets; the fast cores' own turbo; one of the line for a single socket.
    assert (cpu("xeon_6154").sockets, cpu("xeon_6_6761p").sockets) == (4, 1)
    assert cpu("i9_14900ks").boost_ghz == 5.7
    # AMD names 85.3 GB/s for the EPYC 7282, of which two dies read nearly all; 614 for the EPYC 9005.
    assert cpu("epyc_7282").link_limit_gbs == pytest.approx(85.3, rel=0.02)
    assert memory.official(cpu("epyc_9355")).gbs == pytest.approx(614, rel=1e-3)
    assert memory.official(cpu("grace")).gbs == 384
    # Server and Workstation Edition differ.
    server, workstation = gpu("rtx_pro_6000_server"), gpu("rtx_pro_6000")
    assert (server.bandwidth_gbs, workstation.bandwidth_gbs) == (1597, 1792)
    assert server.tflops < workstation.tflops


def test_cards_are_within_what_there_is():
    for each in gpus().values():
        assert 4 <= each.memory_gb <= 300, each
        assert 100 <= each.bandwidth_gbs <= 8000, each
        assert each.tflops >= 0.99 * each.fp32_tflops, each
        assert (each.pcie_generation, each.pcie_lanes) in [(3, 16), (4, 8), (4, 16), (5, 8), (5, 16)], each


def test_processors_are_within_what_there_is():
    for each in cpus().values():
        assert each.isa in ISAS, each
        assert each.base_ghz <= each.boost_ghz <= 6.2, each
        assert each.channels in (2, 4, 6, 8, 12), each
        assert each.memory in memory.KINDS, each
        assert 1866 <= each.mts <= 8000, each
        assert (each.e_cores == 0) == (each.e_operations == 0) == (each.e_base_ghz == 0), each
        assert each.operations == 1024 if each.isa == "amx" else each.operations <= 128, each
        # Dies and their links are known together, and carry at least a quarter of the memory.
        assert (each.chiplets == 0) == (each.chiplet_gbs == 0), each
        assert each.link_limit_gbs > 0.25 * memory.official(each).gbs, each


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        # Multiprocessors x operations a cycle x boost clock.
        ("rtx_3090", 82 * 512 * 1.695e-3),
        ("rtx_4090", 128 * 512 * 2.52e-3),
        ("rtx_5080", 84 * 512 * 2.617e-3),
        ("rtx_a6000", 84 * 1024 * 1.8e-3),
        ("rtx_6000_ada", 142 * 1024 * 2.505e-3),
        ("t4", 40 * 1024 * 1.59e-3),
        ("a100_80gb", 312),
        ("h100", 989.4),
        ("p40", 11.76),
    ],
)
def test_arithmetic_counts_fp32_accumulate(name, tflops):
    assert gpu(name).tflops == pytest.approx(tflops, rel=2e-3)


def test_arithmetic_of_processors():
    # AVX-512 at the base clock, as conf/platform/rtx5090_ddr5.yaml has it.
    assert cpu("ryzen_9950x").tflops == pytest.approx(16 * 128 * 4.3e-3)
    # AVX2 half-way to the boost clock; efficient cores beside the fast ones.
    assert cpu("i9_14900k").tflops == pytest.approx((8 * 32 * 4.4 + 16 * 16 * 3.4) / 1e3)
    assert cpu("xeon_8480_plus").tflops == pytest.approx(56 * 1024 * 2.0e-3)


def test_a_folder_of_ones_own_adds_parts_and_replaces_ours(tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    header, *lines = (TABLES / "gpu.csv").read_text().splitlines()
    ours = next(line for line in lines if line.startswith("rtx_3090,"))
    mine = [ours.replace("rtx_3090,GeForce RTX 3090,24", "mine,My card,99"), ours.replace("RTX 3090,24", "RTX 3090,23")]
    (tmp_path / "parts" / "gpu.csv").write_text("\n".join([header, *mine]) + "\n")
    monkeypatch.setenv(folders.OWN, str(tmp_path))
    assert (gpu("mine").memory_gb, gpu("rtx_3090").memory_gb, gpu("rtx_4090").memory_gb) == (99, 23, 24)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,X,0,1,1,1,,4,16,,t", "line 2, memory_gb: found 0, expected a positive number"),
        ("x,X,a,1,1,1,,4,16,,t", "line 2, memory_gb: found 'a', expected a number"),
        ("x,X,1,1,1,1,,4,16,,", "line 2, source: found nothing, expected a value"),
        ("x,X,1,1,1,1,,4,16,,t\nx,Y,1,1,1,1,,4,16,,t", "line 3: found 'x' twice, expected each name once"),
    ],
)
def test_a_bad_table_is_one_line(row, message, tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    header = (TABLES / "gpu.csv").read_text().splitlines()[0]
    (tmp_path / "parts" / "gpu.csv").write_text(f"{header}\n{row}\n")
    monkeypatch.setenv(folders.OWN, str(tmp_path))
    with pytest.raises(InputError) as error:
        gpus()
    assert str(error.value).endswith(message)


# ---- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("find", "name", "message"),
    [
        (gpu, "rtx_508", "gpu: found 'rtx_508', expected a name of conf/parts/gpu.csv, such as rtx_5080"),
        (cpu, "ryzen_9950", "cpu: found 'ryzen_9950', expected a name of conf/parts/cpu.csv, such as ryzen_9950x"),
        (links.link, "pcie7_x16", "link: found PCIe 7.0 x16, expected one of pcie2_x1 to pcie6_x16"),
        (links.link, "pcie4_x3", "link: found PCIe 4.0 x3"),
        (links.link, "sata", "link: found 'sata', expected pcieGENERATION_xLANES, such as pcie4_x16, or nvlink_c2c"),
    ],
)
def test_unknown_names_are_one_line_with_near_matches(find, name, message):
    with pytest.raises(InputError) as error:
        find(name)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ddr5", "found 'ddr5', expected type_MT/s x channels, such as ddr5_5600x2"),
        ("ddr4_3200x2", "found ddr4 with Ryzen 9 9950X, expected ddr5"),
        ("ddr5_5600x4", "found 4 channels in 'ddr5_5600x4', expected 1 to the 2 of Ryzen 9 9950X"),
        ("ddr5_56x2", "found 56 MT/s in 'ddr5_56x2', expected 800 to 12800"),
    ],
)
def test_memory_that_does_not_fit(name, message):
    with pytest.raises(InputError, match=f"^ram: {message}"):
        memory.ram(name, cpu("ryzen_9950x"))


def test_memory_by_name():
    found = memory.ram("ddr5_4800x2", cpu("ryzen_9950x"))
    assert (found.gbs, found.name) == (pytest.approx(76.8), "ddr5_4800x2")
    assert memory.ram("ddr4_3200x2", cpu("i5_12400f")).gbs == pytest.approx(51.2)


def test_shares_of_memory():
    two = Ram("ddr5", 6000, 2, modules=2)
    assert memory.share(two, cpu("ryzen_9950x")) == 0.72
    # One die's link to the fabric: 64 GB/s, of which 0.9 arrive.
    assert memory.share(two, cpu("ryzen_9700x")) == pytest.approx(57.6 / 96)
    # Four modules run no faster than DDR5-3600: 32 to 39 GB/s were measured.
    assert 32 < memory.share(replace(two, modules=4), cpu("ryzen_9950x")) * 96 < 42
    # Two dies of a Threadripper: 84.5 GB/s were measured.
    assert memory.share(Ram("ddr4", 3200, 8), cpu("threadripper_5955wx")) * 204.8 == pytest.approx(84.5, rel=0.1)


@given(st.sampled_from([2, 3, 4, 5, 6]), st.sampled_from(links.LANES), st.sampled_from(links.LANES))
def test_links_grow_with_lanes_and_stay_below_the_wire(generation, lanes, more):
    wire = {2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}[generation]
    one, other = links.pcie(generation, lanes), links.pcie(generation, more)
    assert one.gbs / lanes == pytest.approx(other.gbs / more)
    assert 0.7 * wire * lanes < one.gbs < wire * lanes
    assert links.link(one.name) == one


def test_links_as_measured():
    assert links.link("pcie4_x16").gbs == pytest.approx(25, abs=0.1)
    assert links.link("pcie3_x16").gbs == pytest.approx(12.4, abs=0.1)
    assert links.link("pcie5_x16").gbs == pytest.approx(54, abs=0.3)


def test_the_slower_connector_counts_and_cards_share_lanes():
    desktop, server = cpu("ryzen_5950x"), cpu("epyc_9654")
    assert links.slower(gpu("rtx_5090"), desktop).name == "pcie4_x16"
    assert links.slower(gpu("rtx_3090"), server).name == "pcie4_x16"
    assert links.slower(gpu("rtx_4060_ti_8gb"), server).name == "pcie4_x8"
    assert links.slower(gpu("rtx_3090"), desktop, gpus=2).name == "pcie4_x8"
    assert links.slower(gpu("rtx_3090"), server, gpus=4).name == "pcie4_x16"
    assert links.slower(gpu("gh200"), cpu("grace")).name == "nvlink_c2c"
    assert links.slower(None, None) is None


# ---- the platform ------------------------------------------------------------------------------------


def test_a_composed_machine():
    found = machine.by_name("rtx_4090", "ryzen_7950x", "ddr5_6000x2", "pcie4_x16", gpus=2)
    assert found.name == "2x rtx_4090 ryzen_7950x ddr5_6000x2 pcie4_x16"
    assert (found.gpu_memory_gb, found.gpus, found.cpu_cores, found.sockets) == (48, 2, 16, 1)
    # One works at a time.
    assert (found.gpu.bandwidth_gbs, found.gpu.tflops) == (1008, 165.2)
    assert found.cpu.bandwidth_gbs == pytest.approx(96)
    assert found.cpu.bandwidth == pytest.approx(0.72 * 96e9)
    assert found.cpu.tflops == pytest.approx(16 * 64 * 4.5e-3)
    assert found.cpu.isa == "avx512_bf16"
    assert found.link_gbs == pytest.approx(25.0, abs=0.05)


def test_what_is_not_named_is_official():
    found = machine.by_name("rtx_5080", "epyc_9354", sockets=2)
    assert found.name == "rtx_5080 2x epyc_9354 ddr5_4800x12 pcie5_x16"
    assert found.cpu.bandwidth_gbs == pytest.approx(2 * 460.8)
    assert found.cpu_cores == 64
    # Eight dies: 0.9 x 8 x 57.6 GB/s of a socket, more than 0.8 of its peak.
    assert found.cpu.bandwidth_share == 0.8


def test_a_measured_bandwidth_replaces_the_data_sheets():
    found = machine.by_name("rtx_5080", "ryzen_9950x", host_gbs=62.5)
    assert (found.cpu.bandwidth_gbs, found.cpu.bandwidth_share) == (62.5, 1.0)
    card, processor = gpu("rtx_5080"), cpu("ryzen_9950x")
    of_memory = machine.compose(card, processor, Ram(None, None, None, measured_gbs=56))
    assert of_memory.cpu.bandwidth == pytest.approx(56e9)
    with pytest.raises(InputError, match="found no bandwidth"):
        machine.compose(card, processor, Ram("ddr5", None, 2))


def test_fewer_cores_compute_less():
    whole, part = (machine.compose(gpu("rtx_5080"), cpu("epyc_9354"), cores=cores) for cores in (None, 8))
    assert (part.cpu_cores, part.cpu.tflops) == (8, pytest.approx(whole.cpu.tflops / 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus": 0}, "gpus: found 0, expected a whole number of at least 1"),
        ({"gpus": 1.5}, "gpus: found 1.5, expected"),
        ({"sockets": 2}, "sockets: found 2, expected a whole number from 1 to the 1 of Ryzen 9 9950X"),
        ({"host_gbs": -1}, "host_gbs: found -1, expected a positive number"),
        ({"host_gbs": "fast"}, "host_gbs: found 'fast', expected a positive number"),
    ],
)
def test_numbers_that_do_not_fit(settings, message):
    with pytest.raises(InputError, match=f"^{message}"):
        machine.by_name("rtx_5080", "ryzen_9950x", **settings)


def test_platforms_check_their_further_fields():
    found = machine.by_name("rtx_5080", "ryzen_9950x")
    for field in ("gpus", "sockets", "host_memory_gb"):
        with pytest.raises(InputError, match=f"^platform.{field}: found 0"):
            replace(found, **{field: 0})


# ---- settings ----------------------------------------------------------------------------------------


def platform(*overrides: str) -> Platform:
    return make(configuration("compare", list(overrides)).platform, "platform")


def test_parts_are_settings_of_a_verb():
    assert platform(*PARTS) == machine.by_name("rtx_5080", "ryzen_9950x", "ddr5_4800x2", "pcie5_x16")
    assert platform(*PARTS[:2], "gpus=2", "host_gbs=62.5").cpu.bandwidth == pytest.approx(62.5e9)
    assert platform("platform=parts", *PARTS[:2]) == machine.by_name("rtx_5080", "ryzen_9950x")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["gpu=rtx_5080"], "cpu: found nothing, expected a value: dali compare cpu=..."),
        (["cpu=ryzen_9950x"], "gpu: found nothing, expected a value: dali compare gpu=..."),
        (["gpu=5080", "cpu=ryzen_9950x"], "gpu: found '5080', expected a name of conf/parts/gpu.csv"),
        (["platform=rtx4090_ddr5", "gpu=rtx_5080"], "platform=rtx4090_ddr5: found it beside gpu=rtx_5080"),
    ],
)
def test_settings_that_do_not_compose(overrides, message):
    with pytest.raises(InputError) as error:
        platform(*overrides)
    assert str(error.value).startswith(message)


def test_policies_may_believe_in_parts():
    entry = "parts gpu=rtx_5090 cpu=ryzen_9950x"
    assert believed_platform("compare", PARTS, entry) == machine.by_name("rtx_5090", "ryzen_9950x")


def test_a_run_on_this_machine_has_no_parts(capsys):
    assert main(["run", "gpu=rtx_5080"]) == 2
    assert "could not override 'gpu'" in capsys.readouterr().err


def test_compare_on_parts(toy, tmp_path, capsys):
    settings = [f"trace={toy}", f"output={tmp_path}", *TOY, "policies=[llama_cpp]", "workload.batch=[1]"]
    assert main(["compare", *settings, *PARTS]) == 0
    assert "on rtx_5080 ryzen_9950x ddr5_4800x2 pcie5_x16," in capsys.readouterr().out


def test_in_python(toy):
    settings = {"trace": str(toy), "cache_share": 0.75, "workload": {"prompt": 8, "generate": 6}}
    named = dali.simulate("llama_cpp", *TOY[:3], **settings, gpu="rtx_5080", cpu="ryzen_9950x", host_gbs=62.5)
    made = machine.by_name("rtx_5080", "ryzen_9950x", host_gbs=62.5)
    assert named.equals(dali.simulate("llama_cpp", *TOY[:3], **settings, platform=made))
    with pytest.raises(InputError, match="expected one of them"):
        dali.simulate("llama_cpp", *TOY[:3], **settings, platform=made, gpu="rtx_5080")


def test_a_sweep_stores_figures_and_not_names():
    experiment = Experiment(
        "x", "X", "", [{"metric": "tokens_per_s", "phase": "decode"}], ["dali"], {"cache_share": [0.5]}
    )
    asked = [request(experiment.points([*parts, "trace=tiny_moe"])[0], [0]) for parts in (PARTS, PARTS[:3])]
    assert make(asked[0].config["platform"], "platform") == platform(*PARTS)
    # The link that is not named is the same one.
    assert asked[0].key == asked[1].key


def test_parts_take_the_place_of_an_experiments_machine():
    experiment = Experiment(
        "x", "X", "", [{"metric": "tokens_per_s", "phase": "decode"}], ["dali"], {"cache_share": [0.5]},
        ["platform=rtx4090_ddr5", "platform.link_gbs=5"],
    )  # fmt: skip
    assert platform(*experiment.points(PARTS)[0].overrides[-4:]) == platform(*PARTS)
    assert not [each for each in experiment.points(PARTS)[0].overrides if each.startswith("platform")]
