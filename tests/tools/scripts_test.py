#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The scripts as a user runs them: scripts_test.py REPOSITORY BUILD, where BUILD holds the program `shorthand`."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT, BUILD = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
SCRIPTS = sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file() and os.access(path, os.X_OK))


def run(command, cwd, build=None):
    environment = {name: value for name, value in os.environ.items() if name != "BUILD"}
    if build:
        environment["BUILD"] = str(build)
    return subprocess.run([str(word) for word in command], cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, check=False)


class Scripts(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def test_help_goes_to_stdout(self):
        self.assertGreater(len(SCRIPTS), 8)
        for script in SCRIPTS:
            for flag in ("--help", "-h"):
                with self.subTest(script=script.name, flag=flag):
                    done = run([script, flag], self.folder)
                    self.assertEqual(done.returncode, 0, done.stderr)
                    self.assertTrue(done.stdout.startswith(f"usage: {script.name}"), done.stdout)
                    self.assertEqual(done.stderr, "")

    def test_an_unknown_option_is_told_with_the_usage(self):
        for script in SCRIPTS:
            for arguments in (["--no-such-option"], ["--no-such-option", "1"]):
                with self.subTest(script=script.name, arguments=arguments):
                    done = run([script, *arguments], self.folder)
                    self.assertEqual(done.returncode, 2)
                    self.assertEqual(done.stdout, "")
                    self.assertIn(f"usage: {script.name}", done.stderr)
                    self.assertNotIn("Traceback", done.stderr)

    def test_an_option_without_its_value_is_told(self):
        done = run([ROOT / "scripts/long_run.sh", "--rows"], self.folder)
        self.assertEqual(done.returncode, 2)
        self.assertIn("--rows needs a value", done.stderr)

    def test_files_that_are_missing_or_no_json_are_told(self):
        (self.folder / "text").write_text("{no json\n", encoding="utf-8")
        for command in (["plot_long.py"], ["study_curve.py"], ["results_table.py"], ["stretch_rope.py"],
                        ["roofline_table.py"], ["race_table.py", "--peer", "name"]):
            rest = {"results_table.py": ["1024", "full"], "stretch_rope.py": ["copy", "1", "2"],
                    "roofline_table.py": ["missing"]}.get(command[0], [])
            for file in ("missing", "text"):
                with self.subTest(script=command[0], file=file):
                    done = run([ROOT / "scripts" / command[0], *command[1:], file, *rest], self.folder)
                    self.assertNotEqual(done.returncode, 0)
                    self.assertNotIn("Traceback", done.stderr)

    def test_roofline_table_takes_shares_of_what_binds(self):
        def file(name, **runs):
            rows = [{"name": run, "run_name": run, "run_type": "iteration"} | counters for run, counters in runs.items()]
            (self.folder / name).write_text(json.dumps({"context": {}, "benchmarks": rows}), encoding="utf-8")
            return name

        machine = {}
        for n in (1, 2):
            for name, counters in (("BM_read_memory", {"bytes_per_second": n * 10e9}), ("BM_fma_peak", {"GFLOP/s": n * 100.0}),
                                   ("BM_byte_dot_peak", {"Gop/s": n * 400.0})):
                machine[f"{name}/real_time/threads:{n}"] = counters
        kernels = {
            "decode/q8_0/packed/real_time/threads:2": {"bytes_per_second": 15e9, "GFLOP/s": 30.0, "label": "byte products"},
            "cached/q8_0/packed": {"bytes_per_second": 25e9, "GFLOP/s": 50.0, "label": "byte products"},
            "prefill/q8_0": {"bytes_per_second": 1e9, "GFLOP/s": 80.0, "label": "byte products"},
            "prefill/q8_0/packed": {"bytes_per_second": 1e9, "GFLOP/s": 200.0, "label": "byte products"},
            "decode/f16/real_time/threads:2": {"bytes_per_second": 2e9, "GFLOP/s": 180.0, "label": "multiply-adds"},
            "prefill/f16": {"bytes_per_second": 1e9, "GFLOP/s": 70.0, "label": "multiply-adds"},
            "attend_decode/f16/rows:4096/queries:4/bias": {"bytes_per_second": 8e9, "GFLOP/s": 32.0},
            "attend_prefill/q8_0/rows:8192/queries:512": {"bytes_per_second": 1e9, "GFLOP/s": 60.0}}
        done = run([ROOT / "scripts/roofline_table.py", file("machine.json", **machine), file("kernels.json", **kernels)],
                   self.folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        for line in ("| q8_0 | packed | 15.0 | 75 % | memory | 25.0 | 200 | 50 % | byte products |",
                     "| f16 | as in the file | 2.0 | 90 % | multiply-adds |  | 70 | 70 % | multiply-adds |",
                     "| decode | f16 | 4096 | 4 | 128 | yes | 8.0 | 80 % | 32.0 | 32 % |",
                     "| prefill | q8_0 | 8192 | 512 | 128 | no |  |  | 60.0 | 60 % |"):
            self.assertIn(line, done.stdout)

    def test_race_table_has_a_column_for_each_kind_of_weights(self):
        def race(name, model, ratio):
            test = {"model": model, "test": "pp512", "cache": "f16/f16", "a": [100.4, 90], "b": [50, 50], "ratio": ratio,
                    "low": 1.5, "high": 2.25}
            (self.folder / name).write_text(json.dumps({"rounds": 2, "tests": [test]}), encoding="utf-8")
            return name

        done = run([ROOT / "scripts/race_table.py", "--peer", "one", race("a.json", "1B-q8_0.gguf", 1.25),
                    race("b.json", "1B-Q4_K_M.gguf", 2.0), "--peer", "another", race("c.json", "1B-q8_0.gguf", 3.0)], self.folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.splitlines(), [
            "| peer | model | test | cache | q8_0 | Q4_K_M |", "|---|---|---|---|--:|--:|",
            "| another | 1B | pp512 | f16/f16 | 3.00 (1.50 to 2.25), 95; 2 |  |",
            "| one | 1B | pp512 | f16/f16 | 1.25 (1.50 to 2.25), 95; 2 | 2.00 (1.50 to 2.25), 95; 2 |"])
        (self.folder / "d.json").write_text('{"rounds": 2}', encoding="utf-8")
        done = run([ROOT / "scripts/race_table.py", "--peer", "one", "d.json"], self.folder)
        self.assertIn("d.json is no result of bench/compare --json", done.stderr)

    def test_programs_are_looked_for_where_make_builds_them(self):
        """In a repository that nobody built yet, each script names a target of make, and that target builds there."""
        shutil.copytree(ROOT / "scripts", self.folder / "scripts")
        presets = (ROOT / "CMakePresets.json").read_text(encoding="utf-8")
        self.assertIn('"binaryDir": "${sourceDir}/build/${presetName}"', presets)
        for name in ("compare_methods.sh", "study_curve.sh", "long_run.sh", "demo.sh"):
            with self.subTest(script=name):
                done = run([self.folder / "scripts" / name], self.folder)
                self.assertEqual(done.returncode, 1)
                found = re.search(r"/build/(\w+)/\S+ is not there: run `make (\w+)`", done.stderr)
                self.assertTrue(found, done.stderr)
                made = run(["make", "-n", found[2]], ROOT)
                self.assertIn(f"cmake --build --preset {found[1]}\n", made.stdout)
                self.assertIn("BUILD=FOLDER", run([self.folder / "scripts" / name, "--help"], ROOT).stdout)
                done = run([self.folder / "scripts" / name], self.folder, build="elsewhere")
                self.assertIn(str(self.folder / "elsewhere"), done.stderr)

    def test_results_land_where_the_caller_stands_and_are_not_measured_twice(self):
        command = [ROOT / "scripts/compare_methods.sh", "--docs", "1", "--contexts", "512", "--ratios", "8",
                   "--methods", "truncate", "--out", "mine"]
        done = run(command, self.folder, build=BUILD)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()),
                         ["mine-512.html", "mine-512.json", "mine-512.json.items.jsonl", "mine-512.md"])
        table = (self.folder / "mine-512.md").read_text(encoding="utf-8")
        self.assertIn("truncate", table)
        (self.folder / "mine-512.md").write_text("mine", encoding="utf-8")
        done = run(command, self.folder, build=BUILD)
        self.assertEqual(done.returncode, 0)
        self.assertIn("mine-512.json is there: not measured again", done.stderr)
        self.assertEqual((self.folder / "mine-512.md").read_text(encoding="utf-8"), "mine")

    def test_a_folder_that_is_missing_is_told_before_hours_are_spent(self):
        for name in ("compare_methods.sh", "study_curve.sh"):
            with self.subTest(script=name):
                done = run([ROOT / "scripts" / name, "--out", "missing/x"], self.folder, build=BUILD)
                self.assertEqual(done.returncode, 1)
                self.assertIn(f"{self.folder}/missing is not there", done.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
