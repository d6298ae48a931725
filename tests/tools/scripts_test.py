#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The scripts as a user runs them: scripts_test.py REPOSITORY BUILD, where BUILD holds the program `shorthand`."""
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
        for command in (["plot_long.py"], ["study_curve.py"], ["results_table.py"], ["stretch_rope.py"]):
            rest = {"results_table.py": ["1024", "full"], "stretch_rope.py": ["copy", "1", "2"]}.get(command[0], [])
            for file in ("missing", "text"):
                with self.subTest(script=command[0], file=file):
                    done = run([ROOT / "scripts" / command[0], file, *rest], self.folder)
                    self.assertNotEqual(done.returncode, 0)
                    self.assertNotIn("Traceback", done.stderr)

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
