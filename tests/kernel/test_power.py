"""Sustained time, power and clock: arithmetic on samples, the driver's library, and the command on a fake device."""

from __future__ import annotations

import csv
import ctypes
import json
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import apart_rivals
import pytest
import torch
from fake_meter import FakeMeter
from helpers import refused

from kernel.benchmark import nvml, power, sustained
from kernel.benchmark.apart import Apart
from kernel.benchmark.cute_rivals import cute_rivals
from kernel.benchmark.nvml import POWER_CAP, Sample
from kernel.benchmark.problems import Shape
from kernel.benchmark.rivals import Case, rivals
from kernel.benchmark.sustained import Durations, Sustained, doubts, figures, sustain

CPU = torch.device("cpu")
BRIEF = Durations(seconds=0.15, warm=0.01, pause=0.0, alone=3)


def samples(count=50, watts=700.0, step=5, start=0.0, reasons=POWER_CAP):
    """One each 20 ms, the energy counter going on every ``step`` of them."""
    times = [start + 0.02 * i for i in range(count)]
    return tuple(
        Sample(t, watts, 1400.0, reasons, watts * (start + 0.02 * (i // step * step))) for i, t in enumerate(times)
    )


class TestFigures:
    def test_a_call_has_its_share_of_all_loops(self):
        found = figures(
            [Sustained(900.0, 60, samples(), (10.0, 12.0, 11.0)), Sustained(600.0, 40, samples(), (9.0, 13.0, 30.0))]
        )
        assert found.ms == pytest.approx(15.0)
        assert (found.calls, found.seconds, found.samples) == (100, pytest.approx(1.5), 100)
        assert found.ms_alone == 11.5, "the median of the calls alone"

    def test_energy_counts_from_step_to_step(self):
        """Whose first and last reads lie within a step: from these it would be wrong by as much as a step."""
        (loop,) = [Sustained(980.0, 98, samples(count=48), (9.0,))]
        assert loop.samples[-1].joules / loop.samples[-1].seconds < 690
        found = figures([loop])
        assert found.counter_watts == pytest.approx(700.0)
        assert found.joules == pytest.approx(7.0)

    def test_what_the_counter_says_between_loops_does_not_count(self):
        loops = [Sustained(1000.0, 100, samples(start=start), (9.0,)) for start in (0.0, 600.0)]
        apart = [
            loop._replace(samples=tuple(s._replace(joules=s.joules + 1e6 * i) for s in loop.samples))
            for i, loop in enumerate(loops)
        ]
        assert figures(apart).counter_watts == pytest.approx(700.0)

    @pytest.mark.parametrize("counter", [None, 5.0])
    def test_a_counter_that_does_not_move_is_no_check(self, counter):
        still = tuple(sample._replace(joules=counter) for sample in samples(watts=500.0))
        found = figures([Sustained(1000.0, 50, still, (19.0,))])
        assert found.counter_watts is None
        assert found.joules == pytest.approx(500.0 * 0.020)

    def test_shares_of_what_holds_the_clock_down(self):
        mixed = samples(30) + samples(10, reasons=0x1) + samples(10, reasons=0x44)
        found = figures([Sustained(1000.0, 50, mixed, (19.0,))])
        assert (found.at_limit, found.slowed) == (pytest.approx(0.8), pytest.approx(0.2))

    def test_a_loop_at_which_nobody_looked_is_refused(self):
        with pytest.raises(ValueError, match="nobody looked at the device during the loop: give more seconds"):
            figures([Sustained(1.0, 3, (), (1.0,))])


SOUND = figures([Sustained(1000.0, 100, samples(), (9.0,))])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"watts": 640.0}, []),
        ({"samples": 9}, ["only 9 samples of its power"]),
        ({"watts": 560.0}, ["560 W by the sensor, 700 by the energy counter"]),
        ({"slowed": 0.25}, ["heat or the hardware slowed the device in 25% of the samples"]),
        ({"counter_watts": None}, []),
    ],
)
def test_doubts(change, said):
    assert list(doubts(SOUND._replace(**change))) == said


class TestSustain:
    def test_the_loop_is_as_long_as_was_asked_and_seen_meanwhile(self):
        calls = []
        found = sustain(lambda: (calls.append(1), time.sleep(0.005)), CPU, FakeMeter(), BRIEF)
        assert 0.1 < found.ms / 1e3 < 0.6
        assert len(calls) > len(found.alone) + found.calls, "of itself before, not counted"
        assert len(found.alone) == 3
        assert all(5 <= ms < 50 for ms in found.alone)
        assert 2 <= len(found.samples) <= found.ms / 10 + 2

    def test_long_calls_are_still_three(self):
        assert sustain(lambda: time.sleep(0.06), CPU, FakeMeter(), BRIEF._replace(seconds=0.01)).calls == 3

    def test_nobody_looks_before_or_after(self):
        meter = FakeMeter()
        found = sustain(lambda: time.sleep(0.005), CPU, meter, BRIEF)
        assert meter.looks == len(found.samples)
        time.sleep(0.05)
        assert meter.looks == len(found.samples)

    def test_a_device_that_cannot_be_read_ends_it(self):
        def fails():
            raise OSError("lost")

        with pytest.raises(OSError, match="lost"):
            sustain(lambda: time.sleep(0.03), CPU, SimpleNamespace(read=fails), BRIEF)


def library(**answers):
    """NVML, by what each function stores at its last argument; a whole number is the status of one that fails."""

    def answer(name):
        def call(*given):
            calls.append((name, given))
            found = answers.get(name, 0)
            if isinstance(found, int):
                return found
            found(given[-1]._obj) if callable(found) else setattr(given[-1]._obj, "value", found[0])
            return 0

        return call

    calls = []
    names = ("nvmlInit_v2", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetPowerUsage")
    names += ("nvmlDeviceGetMaxClockInfo", "nvmlDeviceGetClockInfo", "nvmlDeviceGetTotalEnergyConsumption")
    names += ("nvmlDeviceGetFieldValues", "nvmlDeviceGetCurrentClocksThrottleReasons")
    fake = SimpleNamespace(**{name: answer(name) for name in names}, calls=calls)

    class Words:
        restype = None

        def __call__(self, status):
            assert self.restype is ctypes.c_char_p, "else it were a number"
            return b"Not Found" if status == 6 else b"Not Supported"

    fake.nvmlErrorString = Words()
    return fake


def instant(field):
    assert field.field == 186
    field.value = 709_000


ANSWERS = {
    "nvmlDeviceGetHandleByUUID": [77],
    "nvmlDeviceGetFieldValues": instant,
    "nvmlDeviceGetPowerUsage": [650_000],
    "nvmlDeviceGetEnforcedPowerLimit": [700_000],
    "nvmlDeviceGetMaxClockInfo": [1980],
    "nvmlDeviceGetClockInfo": [1395],
    "nvmlDeviceGetCurrentClocksThrottleReasons": [4],
    "nvmlDeviceGetTotalEnergyConsumption": [2**40 + 500],
}


@pytest.fixture
def driver(monkeypatch):
    """A driver whose library gives these answers; returns what was called."""

    def install(**answers):
        fake = library(**(ANSWERS | answers))
        monkeypatch.setattr(nvml.ctypes, "CDLL", lambda name: fake)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        uuids = ["0000", "1234-56"]
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=uuids[index]))
        return fake

    return install


class TestMeter:
    def test_power_clock_reasons_and_energy(self, driver):
        fake = driver()
        meter = nvml.Meter()
        assert (meter.limit_watts, meter.most_mhz) == (700.0, 1980)
        assert meter.read()[1:] == (709.0, 1395, POWER_CAP, pytest.approx((2**40 + 500) / 1e3))
        (asked,) = [given for name, given in fake.calls if name == "nvmlDeviceGetHandleByUUID"]
        assert asked[0] == b"GPU-1234-56", "of torch's current device"
        handles = [given[0].value for name, given in fake.calls if name.startswith("nvmlDeviceGetC")]
        assert handles
        assert set(handles) == {77}

    def test_a_field_has_the_size_of_the_library(self):
        assert ctypes.sizeof(nvml._Field) == 40
        assert nvml._Field.value.offset == 32

    @pytest.mark.parametrize("answer", [3, lambda field: setattr(field, "status", 3)])
    def test_without_power_of_this_moment_it_is_the_mean_of_a_second(self, driver, answer):
        driver(nvmlDeviceGetFieldValues=answer)
        assert nvml.Meter().read().watts == 650.0

    def test_what_is_not_told_is_none(self, driver):
        missing = ("EnforcedPowerLimit", "MaxClockInfo", "TotalEnergyConsumption")
        driver(**{f"nvmlDeviceGet{name}": 3 for name in missing})
        meter = nvml.Meter()
        assert (meter.limit_watts, meter.most_mhz, meter.read().joules) == (None, None, None)

    @pytest.mark.parametrize(
        ("function", "status", "words"),
        [("nvmlDeviceGetHandleByUUID", 6, "Not Found"), ("nvmlDeviceGetClockInfo", 3, "Not Supported")],
    )
    def test_what_fails_is_named_before_anything_is_measured(self, driver, function, status, words):
        driver(**{function: status})
        with pytest.raises(OSError, match=f"{function} of libnvidia-ml.so.1 failed: {words}"):
            nvml.Meter()

    def test_newer_drivers_name_reasons_otherwise(self, driver):
        fake = driver()
        fake.nvmlDeviceGetCurrentClocksEventReasons = fake.nvmlDeviceGetCurrentClocksThrottleReasons
        del fake.nvmlDeviceGetCurrentClocksThrottleReasons
        assert nvml.Meter().read().reasons == POWER_CAP

    def test_without_the_driver_it_says_what_is_missing(self, monkeypatch):
        def missing(name):
            raise OSError("cannot open shared object file")

        monkeypatch.setattr(nvml.ctypes, "CDLL", missing)
        with pytest.raises(
            OSError, match=r"power is read by libnvidia-ml\.so\.1, which comes with NVIDIA's driver: cannot"
        ):
            nvml.Meter()


def test_a_process_apart_repeats_what_it_prepared():
    case, shape = Case(label_smoothing=0.0), Shape("small", 32, 64, 16)
    other = Apart(torch.float32, CPU, ["eager", "ends at once"], apart_rivals.implementations, errors=False)
    other.shape = shape
    try:
        entry, ended = other.prepare(case)
        assert entry.columns == {"peak_mib": ""}, "no errors were asked for"
        assert ended.columns["skipped"] == "its process ended with status 7"
        found = other.sustain(entry, FakeMeter, BRIEF)
        assert found.calls >= 3
        assert found.samples
        other._process.kill()
        other._process.join()
        meter = FakeMeter()
        rows = list(power._rounds([entry], CPU, meter, BRIEF, 1, other))
        assert rows == [(entry, [])]
        assert entry.columns["skipped"] == "its process ended during the rounds"
    finally:
        other.close()


def test_rivals_exist_by_their_names():
    assert set(power._RIVALS) <= {rival.name for rival in rivals(0)}
    assert set(power._CUTE) <= {rival.name for rival in cute_rivals()}


@pytest.fixture
def on_a_fake_device(monkeypatch):
    """The command on a CPU; ours is eager there."""
    eager = next(rival for rival in rivals(0) if rival.name == "eager")
    monkeypatch.setattr(power, "_device", lambda: CPU)
    monkeypatch.setattr(power, "Meter", FakeMeter)
    monkeypatch.setattr(power, "ours", lambda name, size: replace(eager, name=f"triton, {name}", workspace_bytes=size))
    monkeypatch.setattr(power, "_WARM_S", 0.01)

    @contextmanager
    def sampled(reader, every):  # as many, however busy the machine is
        found = []
        yield found
        found += [reader.read() for _ in range(20)]

    monkeypatch.setattr(sustained, "_sampled", sampled)


def run(tmp_path, *options):
    arguments = ["--scale", "64", "--seconds", "0.3", "--output", str(tmp_path / "power.csv"), *options]
    status = power.main([*arguments, "--shapes", "Gemma-2-2B"])
    return status, list(csv.DictReader((tmp_path / "power.csv").read_text().splitlines()))


OURS = ["triton, default", "triton, 914 MiB", "triton, 3 GiB", "triton, all kept"]
OTHERS = [*power.FLUSHED, "input @ zeros.T", "copy of the head"]


@pytest.mark.usefixtures("on_a_fake_device")
def test_table(tmp_path, capsys):
    status, rows = run(tmp_path, "--no-rivals")
    said = capsys.readouterr()
    assert status == 0, said.err
    assert [row["case"] for row in rows] == [*power.PRODUCTS, *OTHERS, *OURS]
    assert [row["workspace_mib"] for row in rows[7:10]] == ["128", "914", "3072"]
    for row in rows:
        assert tuple(row) == power.COLUMNS
        assert (row["watts"], row["counter_watts"], row["mhz"]) == ("700.0", "700.0", "1400")
        assert (row["at_limit"], row["slowed"], row["doubt"]) == ("1.000", "0.000", "")
        assert float(row["joules"]) == pytest.approx(0.7 * float(row["ms"]), abs=1e-3)
        calls = int(row["calls"])  # of seconds there are two decimals
        assert float(row["ms"]) == pytest.approx(1e3 * float(row["seconds"]) / calls, abs=5.001 / calls)
    about = json.loads((tmp_path / "power.json").read_text())
    assert about["command"].endswith("kernel.benchmark.power --shapes Gemma-2-2B --seconds 0.3 --no-rivals --scale 64")
    assert about["config"]["limit_watts"] == 700.0
    assert not list(tmp_path.glob("*partial*"))


@pytest.mark.usefixtures("on_a_fake_device")
def test_rounds_count_together_and_rows_keep_their_order(tmp_path, monkeypatch):
    seen = []
    loop = Sustained(400.0, 40, samples(20), (9.0,))
    monkeypatch.setattr(power, "sustain", lambda run, *_: seen.append(run) or loop._replace(ms=400.0 * len(seen)))
    _, rows = run(tmp_path, "--no-rivals", "--rounds", "2")
    count = len(rows)
    assert seen[:count] == seen[: count - 1 : -1], "every other round goes backwards"
    assert [row["case"] for row in rows] == [*power.PRODUCTS, *OTHERS, *OURS]
    assert {row["seconds"] for row in rows} == {f"{0.4 * (2 * count + 1):.2f}"}
    assert {row["calls"] for row in rows} == {"80"}


@pytest.mark.usefixtures("on_a_fake_device")
def test_rivals_that_are_not_there_have_a_row_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(power, "_RIVALS", ("eager",))
    monkeypatch.setattr(power, "sustain", lambda run, *_: Sustained(400.0, 40, samples(20), (9.0,)))
    _, rows = run(tmp_path)
    found = {row["case"]: row for row in rows}
    assert list(found) == [*power.PRODUCTS, *OTHERS, *OURS, "eager", *power._CUTE]
    assert found["eager"]["ms"] == "10.0000"
    for name in power._CUTE:
        assert found[name]["skipped"].startswith(("not installed: ", "needs a CUDA device"))
        assert found[name]["ms"] == ""


@pytest.mark.usefixtures("on_a_fake_device")
def test_a_run_that_is_interrupted_keeps_its_rows(tmp_path, monkeypatch, capsys):
    found = iter([Sustained(400.0, 40, samples(20), (9.0,))] * 2)

    def cut(run, *_):
        for loop in found:
            return loop
        raise KeyboardInterrupt

    monkeypatch.setattr(power, "sustain", cut)
    assert power.main(["--scale", "64", "--no-rivals", "--output", str(tmp_path / "power.csv")]) == 130
    partial = tmp_path / "power.partial.csv"
    assert capsys.readouterr().err == f"interrupted: 2 rows are kept in {partial}\n"
    assert [row["case"] for row in csv.DictReader(partial.read_text().splitlines())] == list(power.PRODUCTS[:2])
    assert not (tmp_path / "power.csv").exists()


@pytest.mark.usefixtures("on_a_fake_device")
def test_what_is_not_to_be_trusted_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(power, "sustain", lambda run, *_: Sustained(400.0, 40, samples(7, step=2), (9.0,)))
    status, rows = run(tmp_path, "--no-rivals")
    assert status == 1
    assert {row["doubt"] for row in rows} == {"only 7 samples of its power"}
    line = "not to be trusted: Gemma-2-2B, dz @ weight: only 7 samples of its power"
    assert line in capsys.readouterr().err.splitlines()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_nothing_is_measured(tmp_path, capsys):
    assert (
        refused(power, ["--output", tmp_path / "power.csv"], capsys)
        == "power is measured on a GPU, and torch finds none."
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "soon"])
def test_seconds_are_a_number_above_zero(text, capsys):
    assert refused(power, ["--seconds", text], capsys) == f"argument --seconds: must be a number above 0, got {text!r}"


def test_the_pause_before_a_call_alone_hides_its_host(monkeypatch):
    """Behind a kernel that only waits, on a device that has had nothing to do."""
    said = []
    for name in ("synchronize", "_sleep"):
        monkeypatch.setattr(torch.cuda, name, lambda *given, name=name: said.append((name, *given)))
    monkeypatch.setattr(sustained.time, "sleep", lambda seconds: said.append(("pause", seconds)))
    monkeypatch.setattr(
        sustained.measure, "turn", lambda run, device, before: before() or run() or SimpleNamespace(ms=7.0)
    )
    assert sustained._alone(lambda: said.append("call"), torch.device("cuda"), 0.1) == 7.0
    assert said == [("synchronize",), ("pause", 0.1), ("_sleep", 80_000_000), "call"]
