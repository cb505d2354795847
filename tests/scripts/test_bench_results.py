import pytest
import torch

from scripts.bench import __main__, machine, report
from scripts.bench.compare import compare_rows, differences
from tests.helpers import PROJECT
from tests.helpers.runs import CPU


def test_the_published_figures_can_be_compared():
    published = report.read(PROJECT / "results/bench/cpu.json")
    assert set(published) == {report.EARLIER_NAMES.get(part, part) for part in __main__.PARTS}
    for result in published.values():
        for found in result["tables"]:
            rows = compare_rows(found["figures"], found["figures"], found["unit"])
            assert {row["new / old"] for row in rows} == {"1.000"}
    epochs = published["epoch"]["tables"][0]
    assert epochs["rows"][0]["images a second"] == "2,983"
    assert 1 / sorted(epochs["figures"]["this harness"])[2] == pytest.approx(2983, abs=1)


def facts(**changes):
    return {
        "date": "2026-01-01", "device": "cpu", "device_name": "Fast(R) CPU", "threads": 2,
        "instruction_sets": ["AMX", "AVX2"], "versions": {"torch": "2.9"}, "commit": "abc",
        "load_average": 0.0,
    } | changes  # fmt: skip


def test_what_differs_is_named():
    assert differences(facts(), facts()) == []
    assert differences(facts(instruction_sets=None), facts()) == []
    assert differences(
        facts(), facts(device_name="Old CPU", instruction_sets=[], versions={}, threads=4)
    ) == [
        "machine (Fast(R) CPU, now Old CPU)", "instruction sets (AMX, AVX2, now none)",
        "torch (2.9, now None)", "threads (2, now 4)",
    ]  # fmt: skip


def test_each_kind_of_machine_has_a_file_and_a_section(tmp_path):
    kinds = {
        "2026-01-01": facts(),
        "2026-01-04": facts(instruction_sets=["AVX2"]),
        "2026-01-02": facts(threads=4),
        "2026-01-03": facts(device="cuda", device_name="Some GPU", instruction_sets=[]),
        "2026-01-05": facts(device_name="Slow CPU", instruction_sets=None),
    }
    paths = []
    for date, kind in kinds.items():
        result = {
            "environment": kind | {"date": date}, "complete": True, "rounds": 2, "notes": [],
            "extra": {"nan": float("nan")}, "tables": [
                {"title": "t", "notes": ["n"], "unit": "s", "figures": {"f": [1.0]},
                 "rows": [{"a": date}]}
            ],
        }  # fmt: skip
        paths.append(report.write("step", result, tmp_path).name)
        later = result | {"environment": result["environment"] | {"date": "2025"}}
        report.write("data", later, tmp_path)
    assert paths == [
        "cpu-fast-cpu-2-threads-amx-avx2.json", "cpu-fast-cpu-2-threads-avx2.json",
        "cpu-fast-cpu-4-threads-amx-avx2.json", "cuda-some-gpu.json",
        "cpu-slow-cpu-2-threads-instruction-sets-not-recorded.json",
    ]  # fmt: skip
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("## ")] == [
        "## Slow CPU, 2 threads, instruction sets not recorded",
        "## Fast(R) CPU, 2 threads, AVX2", "## Some GPU", "## Fast(R) CPU, 4 threads, AMX, AVX2",
        "## Fast(R) CPU, 2 threads, AMX, AVX2",
    ]  # fmt: skip
    assert [line for line in lines if line.startswith("### ")] == ["### step", "### data"] * 5
    assert "NaN" not in (tmp_path / paths[0]).read_text()


def test_the_published_page_is_made_from_the_published_files():
    folder = PROJECT / "results/bench"
    assert (folder / "README.md").read_text() == report.page(report.read_folder(folder))


def test_instruction_sets_are_read_from_the_kernel(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("model name\t: X\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16\n")
    assert machine.instruction_sets(path) == ["AMX", "AVX-512 bf16", "AVX-512", "AVX2"]
    path.write_text("Features\t: fp asimd svebf16 sve\n")
    assert machine.instruction_sets(path) == ["SVE bf16", "SVE", "NEON"]
    path.write_text("model name\t: avx2\nflags\t\t: fpu avx2_not\n")
    assert machine.instruction_sets(path) == []
    assert machine.instruction_sets(tmp_path / "none") == []
    assert machine.environment(torch.device("cuda", 0) if torch.cuda.is_available() else CPU)
