"""Parts by free text: how posts, tables and operating systems write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dali.experiments.parts import machine
from dali.experiments.parts.catalogue import cpu, cpus, gpu, gpus
from dali.experiments.parts.finding import find_cpu, find_gpu, unnamed_cpu
from dali.experiments.parts.finding_host import find_link, find_ram
from dali.policies.types import InputError

# ---- cards -------------------------------------------------------------------------------------------

CARDS = [
    ("4x RTX 4090 (TP4)", 96, "rtx_4090", 4),
    ("RTX 5090", 32, "rtx_5090", 1),
    ("1x RTX 4090 (48 GB)", 48, "rtx_4090_48gb", 1),
    ("1x RTX 4090 (48 GB)", None, "rtx_4090_48gb", 1),
    ("2x RTX 4090 (48 GB)", 96, "rtx_4090_48gb", 2),
    ("2x RTX 4090 (48 GB)", 48, "rtx_4090", 2),
    ("2x RTX 3090 (230 W)", 48, "rtx_3090", 2),
    ("RTX 3090 (x4 link)", 24, "rtx_3090", 1),
    ("GTX 1650 SUPER", 4, "gtx_1650_super", 1),
    ("RTX 5060 Ti", 16, "rtx_5060_ti_16gb", 1),
    ("RTX 4060 Ti", 8, "rtx_4060_ti_8gb", 1),
    ("2x RTX 5060 Ti 16 GB", 32, "rtx_5060_ti_16gb", 2),
    ("2x RTX 6000 Ada", 96, "rtx_6000_ada", 2),
    ("GH200", 97.8, "gh200", 1),
    ("NVIDIA GH200 480GB", None, "gh200", 1),
    ("3090Ti", None, "rtx_3090_ti", 1),
    ("NVIDIA GeForce RTX 3090 Ti", 24, "rtx_3090_ti", 1),
    ("NVIDIA GeForce RTX 4060 Ti 16GB", None, "rtx_4060_ti_16gb", 1),
    ("4060Ti 16G", None, "rtx_4060_ti_16gb", 1),
    ("4060Ti16G", None, "rtx_4060_ti_16gb", 1),
    ("rtx_3090", None, "rtx_3090", 1),
    ("RTX3060-12G", None, "rtx_3060", 1),
    ("RTX 3060", None, "rtx_3060", 1),
    ("3080 (10 GB)", None, "rtx_3080", 1),
    ("RTX 3080", 12, "rtx_3080_12gb", 1),
    ("3080 20GB", None, "rtx_3080_20gb", 1),
    ("RTX 2080 Ti 22GB", None, "rtx_2080_ti_22gb", 1),
    ("2x3090", None, "rtx_3090", 2),
    ("2×RTX 3090", None, "rtx_3090", 2),
    ("2 * RTX 3090", None, "rtx_3090", 2),
    ("2 RTX 3090", None, "rtx_3090", 2),
    ("dual 3090s", None, "rtx_3090", 2),
    ("Two RTX 3090s", None, "rtx_3090", 2),
    ("RTX 3090 x2", None, "rtx_3090", 2),
    ("RTX 3090 (x2)", None, "rtx_3090", 2),
    ("RTX 3090 + RTX 3090", None, "rtx_3090", 2),
    ("RTX 4090 24GB x2 (48GB)", None, "rtx_4090", 2),
    ("RTX 3090 24GB eGPU (x4)", None, "rtx_3090", 1),
    ("RTX 3090 PCIe 3.0 x8", None, "rtx_3090", 1),
    ("RTX 3090 FE 24GB @ 280W", None, "rtx_3090", 1),
    ("RTX4090D 48GB", None, "rtx_4090_d_48gb", 1),
    ("4070 Ti Super", None, "rtx_4070_ti_super", 1),
    ("4070S", None, "rtx_4070_super", 1),
    ("RTX 4090 Laptop GPU", None, "rtx_4090_laptop", 1),
    ("RTX 4090 (laptop)", 16, "rtx_4090_laptop", 1),
    ("4 x A100 80GB", None, "a100_80gb", 4),
    ("A100-SXM4-80GB", None, "a100_sxm_80gb", 1),
    ("NVIDIA A100-PCIE-40GB", None, "a100_40gb", 1),
    ("NVIDIA H100 80GB HBM3", None, "h100", 1),
    ("8 x H200", None, "h200", 8),
    ("RTX A6000 x 4", None, "rtx_a6000", 4),
    ("A6000", None, "rtx_a6000", 1),
    ("NVIDIA RTX 6000 Ada Generation", None, "rtx_6000_ada", 1),
    ("RTX PRO 6000 Blackwell Workstation Edition", None, "rtx_pro_6000", 1),
    ("RTX 6000 PRO", 96, "rtx_pro_6000", 1),
    ("4x Tesla P40 24GB", None, "p40", 4),
    ("Tesla V100-SXM2-32GB", None, "v100_sxm2_32gb", 1),
    ("T4", None, "t4", 1),
    ("L40S", None, "l40s", 1),
    ("AMD Radeon RX 7900 XTX", None, "rx_7900_xtx", 1),
    ("7900XTX", None, "rx_7900_xtx", 1),
    ("2x MI50 32GB", None, "mi50_32gb", 2),
    ("Radeon AI PRO R9700", None, "r9700", 1),
    ("Intel Arc B580", None, "arc_b580", 1),
]


@pytest.mark.parametrize(("text", "total", "name", "count"), CARDS)
def test_cards(text, total, name, count):
    found = find_gpu(text, total)
    assert found is not None
    assert (found[0].name, found[1]) == (name, count)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "various",
        "not said",
        "not said, 8 GB used",
        "2 GPUs, not in excerpt",
        "unknown",
        "CPU only",
        "a 24 GB card",
    ],
)
def test_no_card_is_named(text):
    assert find_gpu(text) is None


@pytest.mark.parametrize(
    ("text", "total", "message"),
    [
        ("RTX 5090 + 2x 3080 20GB", 72, "cards of two kinds"),
        ("3090+3060", None, "cards of two kinds"),
        ("4060Ti", None, "found '4060Ti' without its memory, expected 8 or 16 GB"),
        ("RTX 3060", 16, "found 16 GB a card in 'RTX 3060', expected 12 or 8"),
        ("3x RTX 3090 48GB", None, "found 48 GB a card"),
        ("RTX 9999", None, "found 'RTX 9999', expected one of conf/parts/gpu.csv, such as rtx_"),
        ("RTX 4070 Ti Super Laptop", None, "expected one of conf/parts/gpu.csv, such as rtx_4070_ti_super"),
        ("RTX 4000", None, "expected one of conf/parts/gpu.csv"),
        ("Apple M2 Ultra", None, "share one memory"),
        ("Strix Halo", 96, "share one memory"),
        ("DGX Spark (GB10)", None, "share one memory"),
    ],
)
def test_cards_that_are_refused(text, total, message):
    with pytest.raises(InputError) as error:
        find_gpu(text, total)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@given(st.sampled_from([each for each in gpus().values() if "GB" not in each.title]), st.integers(1, 8))
def test_every_card_is_found_by_its_title(each, count):
    assert find_gpu(f"{count}x NVIDIA {each.title}", each.memory_gb * count) == (each, count)


# ---- processors --------------------------------------------------------------------------------------

PROCESSORS = [
    ("Xeon Gold 6454S (sockets not said)", "xeon_6454s", 1),
    ("2x EPYC 9355", "epyc_9355", 2),
    ("2x Xeon Platinum 8488C", "xeon_8488c", 2),
    ("Threadripper PRO 5975WX", "threadripper_5975wx", 1),
    ("Ryzen 5 3500", "ryzen_3500", 1),
    ("i9-14900K", "i9_14900k", 1),
    ("i9 13900KF", "i9_13900k", 1),
    ("Ryzen 9 9950X", "ryzen_9950x", 1),
    ("ryzen_9950x", "ryzen_9950x", 1),
    ("Grace", "grace", 1),
    ("AMD EPYC 9654 96-Core Processor", "epyc_9654", 1),
    ("Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz", "xeon_6330", 1),
    ("12th Gen Intel(R) Core(TM) i9-12900K", "i9_12900k", 1),
    ("Intel Core i7-12700K", "i7_12700k", 1),
    ("AMD Ryzen 7 9700X 8-Core", "ryzen_9700x", 1),
    ("AMD Ryzen 9 7950X3D 16-Core Processor", "ryzen_7950x3d", 1),
    ("7950X", "ryzen_7950x", 1),
    ("Ryzen 9 7950X 3D", "ryzen_7950x3d", 1),
    ("Ryzen 5 5600G", "ryzen_5600g", 1),
    ("Ryzen 5 3600, 3200MHz RAM", "ryzen_3600", 1),
    ("dual EPYC 7742", "epyc_7742", 2),
    ("EPYC 7763 (2S)", "epyc_7763", 2),
    ("dual socket EPYC 9654", "epyc_9654", 2),
    ("EPYC 7302P", "epyc_7302", 1),
    ("2 x Intel Xeon Platinum 8480+", "xeon_8480_plus", 2),
    ("Xeon 8480C", "xeon_8480_plus", 1),
    ("8592+", "xeon_8592_plus", 1),
    ("E5-2690v4 x2", "xeon_e5_2690_v4", 2),
    ("2x Xeon E5-2699 v3", "xeon_e5_2699_v3", 2),
    ("Intel Xeon w5-3435X", "xeon_w5_3435x", 1),
    ("Xeon 6 6980P", "xeon_6_6980p", 1),
    ("Core Ultra 9 285K", "ultra_9_285k", 1),
    ("AMD RYZEN AI MAX+ 395 w/ Radeon 8060S", "ryzen_ai_max_395", 1),
    ("TR 3960X", "threadripper_3960x", 1),
    ("Threadripper PRO 7965WX 24C/48T", "threadripper_7965wx", 1),
    ("i7-13700H", "i7_13700h", 1),
]


@pytest.mark.parametrize(("text", "name", "sockets"), PROCESSORS)
def test_processors(text, name, sockets):
    found = find_cpu(text)
    assert found is not None
    assert (found[0].name, found[1]) == (name, sockets)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not said",
        "not said in file",
        "not said (author's two machines: 7950X, 5975WX)",
        "not said (WSL2; host read 62.5 GB/s)",
        "18 threads, model not said",
        "2x Xeon, one channel each",
        "cloud server, 8ch",
        "Core i7",
        "Ryzen 7",
        "EPYC Genoa",
        "16 vCPU, 64GB DDR5",
    ],
)
def test_no_processor_is_named(text):
    assert find_cpu(text) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2x 7950X", "found 2 of Ryzen 9 7950X in '2x 7950X', expected at most 1"),
        ("7950X or 5975WX", "found two kinds"),
        ("Xeon Gold 6230N", "expected one of conf/parts/cpu.csv, such as xeon_6230"),
        ("EPYC 9B14", "expected one of conf/parts/cpu.csv, such as epyc_9"),
        ("Apple M2 Ultra", "share one memory"),
    ],
)
def test_processors_that_are_refused(text, message):
    with pytest.raises(InputError) as error:
        find_cpu(text)
    assert message in str(error.value)


@given(st.sampled_from(list(cpus().values())))
def test_every_processor_is_found_by_its_title(each):
    assert find_cpu(f"Intel(R) {each.title} CPU @ {each.base_ghz}GHz") == (each, 1)


def test_a_machine_without_a_named_processor_is_a_desktop_with_what_is_said():
    found = find_ram("128 GB DDR4-3200 2ch", None, stated="51.2")
    made = machine.compose(gpu("rtx_3090"), unnamed_cpu(found, cores=18), found)
    assert (made.cpu_cores, made.cpu.bandwidth_gbs) == (18, pytest.approx(51.2))


# ---- memory ------------------------------------------------------------------------------------------

MEMORY = [
    # text, CPU, sockets, stated: name, GB, how many figures are assumed
    ("128 GB DDR5-4800 2ch", "ryzen_9950x", 1, "77", "ddr5_4800x2", 128, 0),
    ("128 GB DDR5", "ryzen_9950x", 1, "", "ddr5_5600x2", 128, 2),
    ("32 GB DDR5", "ryzen_9700x", 1, "96", "ddr5_6000x2", 32, 0),
    ("512 GB DDR5", "xeon_6454s", 1, "", "ddr5_4800x8", 512, 2),
    ("1 TB DDR5-5600 ECC", "xeon_8488c", 2, "", "ddr5_5600x8", 1000, 1),
    ("768 GB DDR5-6400 12ch", "epyc_9175f", 1, "", "ddr5_6400x12", 768, 0),
    ("64 GB DDR4-3200", "epyc_7343", 1, "", "ddr4_3200x8", 64, 1),
    ("16 GB DDR4-2667", "ryzen_3500", 1, "42.7", "ddr4_2667x2", 16, 0),
    ("94 GB, dual channel", "i5_12400f", 1, "", "ddr5_4800x2", 94, 2),
    ("503 GiB", "xeon_6526y", 2, "", "ddr5_5200x8", 503, 3),
    ("", "epyc_9654", 1, "", "ddr5_4800x12", None, 3),
    ("not said", "grace", 1, "", "lpddr5x_6000x8", None, 3),
    ("DDR5 6000MT/s CL30 2x32GB", "ryzen_9950x", 1, "", "ddr5_6000x2", 64, 1),
    ("8x 32GB DDR4 3200 ECC", "epyc_7532", 1, "", "ddr4_3200x8", 256, 1),
    ("64GB (2x32GB) DDR4-3600", "ryzen_5950x", 1, "", "ddr4_3600x2", 64, 1),
    ("1x 32GB DDR5-5600", "ryzen_9700x", 1, "", "ddr5_5600x1", 32, 1),
    ("32GB x 4 3200MHz", "ryzen_5800x3d", 1, "", "ddr4_3200x2", 128, 2),
    ("16x 32GB DDR4-2666", "epyc_7452", 2, "", "ddr4_2666x8", 512, 1),
    ("PC4-25600 8x16GB", "epyc_7742", 1, "", "ddr4_3200x8", 128, 1),
    ("96GB DDR5 @ 6000", "i9_14900k", 1, "", "ddr5_6000x2", 96, 1),
    ("64 GB DDR4", "i7_13700k", 1, "", "ddr4_3200x2", 64, 2),
    ("octa-channel DDR4-3200", "epyc_7742", 1, "", "ddr4_3200x8", None, 0),
    ("quad channel DDR5-5600", "ryzen_9950x", 1, "", "ddr5_5600x2", None, 1),
    ("128 GB DDR4-3200 2ch", None, 1, "51.2", "ddr4_3200x2", 128, 0),
    ("64 GB DDR5-5600", None, 1, "", "ddr5_5600x2", 64, 1),
    ("110 GB DDR4", None, 1, "", "ddr4_3200x2", 110, 2),
]


@pytest.mark.parametrize(("text", "on", "sockets", "stated", "name", "size", "assumed"), MEMORY)
def test_memory(text, on, sockets, stated, name, size, assumed):
    found = find_ram(text, None if on is None else cpu(on), sockets, stated)
    assert (found.name, found.gb, len(found.assumed), found.measured_gbs) == (name, size, assumed, None)


def test_a_stated_bandwidth_is_measured_unless_it_is_a_product():
    assert find_ram("DDR5", None, stated="62.5").measured_gbs == 62.5
    assert find_ram("189 GB", None, stated="~56").measured_gbs == 56
    assert find_ram("not said", cpu("threadripper_5955wx"), stated="84.5").measured_gbs == 84.5
    assert find_ram("", None, stated="51.2").gbs == pytest.approx(51.2)
    # One that is only nearly computed: of the speed that the text gives.
    assert find_ram("DDR4-2666", None, stated="51.2").measured_gbs == 51.2


def test_memory_of_which_too_little_is_said():
    assert find_ram("", None) is None
    assert not find_ram("31 GB", None).is_known
    assert not find_ram("503 GB DDR4", None).is_known
    with pytest.raises(InputError, match=r"^ram: found ddr4 with Ryzen 9 9950X, expected ddr5"):
        find_ram("64 GB DDR4-3200", cpu("ryzen_9950x"))


# ---- links -------------------------------------------------------------------------------------------

LINKS = [
    ("4.0 x4", "rtx_3090", "i5_12400f", 1, "pcie4_x4", 6.25),
    ("5.0 x16", "rtx_5080", "ryzen_9950x", 1, "pcie5_x16", 54.2),
    ("5.0 x8", "rtx_5060_ti_16gb", "ryzen_9700x", 1, "pcie5_x8", 27.1),
    ("3.0 x8 + x8", "rtx_3090", None, 2, "pcie3_x8", 6.2),
    ("4.0 (card)", "rtx_4080", "ryzen_7950x", 1, "pcie4_x16", 25.0),
    ("5.0 (card)", "rtx_5090", "ryzen_5950x", 1, "pcie4_x16", 25.0),
    ("5.0", "rtx_3090", None, 1, "pcie4_x16", 25.0),
    ("3.0", "gtx_1650_super", "ryzen_3500", 1, "pcie3_x16", 12.45),
    ("4.0 x16 (25.2; gather 24.9; contended 23.9)", "rtx_4090", "threadripper_5955wx", 1, "pcie4_x16", 25.2),
    ("5.0 (25.6 single, 51 batched GB/s)", "rtx_5090", None, 1, "pcie5_x16", 51),
    ("5.0 x16 (56.06)", "rtx_5090", None, 1, "pcie5_x16", 56.06),
    ("4.0 (gather 20.1; contended 23.9)", "rtx_4090", None, 1, "pcie4_x16", 20.1),
    ("(gather 12.3)", "rtx_3090", "xeon_6252", 2, "pcie3_x16", 12.3),
    ("PCIe 3.0 x16, 12.3 GB/s measured", "rtx_3090", None, 1, "pcie3_x16", 12.3),
    ("NVMe 4.0 x4 7 GB/s", "rtx_5070_ti", None, 1, "pcie5_x16", 54.2),
    ("5.0 card; NVMe 4.0 x4 7 GB/s", "rtx_5070_ti", None, 1, "pcie5_x16", 54.2),
    ("NVLink-C2C", "gh200", "grace", 1, "nvlink_c2c", 375),
    ("", "gh200", "grace", 1, "nvlink_c2c", 375),
    ("PCIe Gen4 x8", "rtx_3090", None, 1, "pcie4_x8", 12.5),
    ("Gen 3 x4", "rtx_3090", None, 1, "pcie3_x4", 3.1),
    ("3.0x8", "rtx_3090", None, 1, "pcie3_x8", 6.2),
    ("", "rtx_3090", "ryzen_5950x", 2, "pcie4_x8", 12.5),
    ("", "rtx_4060_ti_8gb", None, 1, "pcie4_x8", 12.5),
]


@pytest.mark.parametrize(("text", "card", "on", "cards", "name", "gbs"), LINKS)
def test_links(text, card, on, cards, name, gbs):
    found = find_link(text, gpu(card), None if on is None else cpu(on), cards)
    assert (found.name, found.gbs) == (name, pytest.approx(gbs, rel=0.01))


def test_what_is_assumed_of_a_link_is_said():
    assert find_link("4.0 x4", gpu("rtx_3090"), None).assumed == ()
    assert find_link("5.0 x16", gpu("rtx_3090"), None).assumed == ("link PCIe 4.0",)
    assert find_link("", gpu("rtx_3090"), None).assumed == ("link PCIe 4.0 x16",)
    assert find_link("5.0 (25.6 single, 51 batched GB/s)", gpu("rtx_5090"), None).assumed != ()


def test_no_link_is_known_or_it_is_no_pcie():
    assert find_link("NVMe", None, None) is None
    assert find_link("", None, None) is None
    with pytest.raises(InputError, match=r"^link: found 'Thunderbolt 4', expected PCIe"):
        find_link("Thunderbolt 4", gpu("rtx_3090"), None)
