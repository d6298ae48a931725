#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prints what kernels_bench measured as Markdown tables, with its shares of what machine_bench measured.

    machine_bench --benchmark_format=json > MACHINE.json
    kernels_bench --benchmark_filter='^(decode|cached|prefill|attend_decode|attend_prefill)/' --benchmark_format=json > KERNELS.json

Weights: one column with two threads from memory (decode) and 512 columns with one (prefill), of each format as the
engine holds it: packed where there is a packed kernel. The share of a decode is of the limit that binds: memory, or the
peak of the instruction that the format is multiplied with; what one thread does with weights from its second cache
(cached) is what unpacking and multiplying leave of both. Attention runs on one thread. Of repeated runs the best
counts, of the machine and of the kernels alike: what differs between them is other work on the machine (of results with
aggregates only, the median).
"""
import sys

import arguments

PEAK_OF = {"byte products": ("BM_byte_dot_peak", "Gop/s"), "multiply-adds": ("BM_fma_peak", "GFLOP/s")}


def rates_of(result):
    """{run name: {counter: best}}; labels as they are."""
    runs = {}
    for run in result["benchmarks"]:
        if run.get("run_type") == "iteration" and not run.get("error_occurred"):
            runs.setdefault(run["run_name"], []).append(run)
    if not runs:  # --benchmark_report_aggregates_only
        for run in result["benchmarks"]:
            if run.get("aggregate_name") == "median":
                runs[run["run_name"]] = [run]
    return {name: {key: value if isinstance(value, str) else max(one[key] for one in several)
                   for key, value in several[0].items() if isinstance(value, (int, float, str))}
            for name, several in runs.items()}


class Machine:
    def __init__(self, result):
        self.rates = rates_of(result)

    def of(self, name, counter, n_threads):
        """0 where it was not measured, as the peaks are not for kernels that have no loop."""
        return self.rates.get(f"{name}/real_time/threads:{n_threads}", {}).get(counter, 0)

    def memory(self, n_threads):
        return self.of("BM_read_memory", "bytes_per_second", n_threads)

    def arithmetic(self, label, n_threads):
        return self.of(*PEAK_OF[label], n_threads)


def share(rate, limit):
    return rate / limit if limit else 0


def percent(value):
    return f"{100 * value:.0f} %" if value else ""


def weights_table(kernels, machine):
    print("| weights | held | decode, 2 threads: GB/s | share | of | cached, 1 thread: GB/s | prefill, 1 thread: Gop/s | share | of |")
    print("|---|---|--:|--:|---|--:|--:|--:|---|")
    for name in dict.fromkeys(name.split("/")[1] for name in kernels if name.startswith("prefill/")):
        is_packed = f"prefill/{name}/packed" in kernels
        held = f"{name}/packed" if is_packed else name
        prefill, decode = kernels[f"prefill/{held}"], kernels.get(f"decode/{held}/real_time/threads:2")
        row = [name, "packed" if is_packed else "as in the file"]
        if decode:
            of_memory = share(decode["bytes_per_second"], machine.memory(2))
            of_peak = share(decode["GFLOP/s"], machine.arithmetic(decode["label"], 2))
            row += [f"{decode['bytes_per_second'] * 1e-9:.1f}", percent(max(of_memory, of_peak)),
                    "memory" if of_memory >= of_peak else decode["label"]]
        else:
            row += [""] * 3
        cached = kernels.get(f"cached/{held}")
        row += [f"{cached['bytes_per_second'] * 1e-9:.1f}" if cached else "", f"{prefill['GFLOP/s']:.0f}",
                percent(share(prefill["GFLOP/s"], machine.arithmetic(prefill["label"], 1))), prefill["label"]]
        print(f"| {' | '.join(row)} |")


def attention_table(kernels, machine):
    print("| attention | cache | rows | queries | width | biases | GB/s | of memory | GFLOP/s | of multiply-adds |")
    print("|---|---|--:|--:|--:|---|--:|--:|--:|--:|")
    rows = []
    for name, run in kernels.items():
        if not name.startswith(("attend_decode/", "attend_prefill/")):
            continue
        kind, cache, *rest = name.split("/")
        sizes = {"width": "128"} | dict(part.split(":") for part in rest if ":" in part)
        order = [kind, cache] + [int(sizes[key]) for key in ("width", "rows", "queries")] + ["bias" in rest]
        rows.append((order, run, sizes))
    for (kind, cache, *_, has_bias), run, sizes in sorted(rows, key=lambda row: row[0]):
        is_decode = kind == "attend_decode"  # what many queries read is mostly in the cache
        row = [kind.removeprefix("attend_"), cache, sizes["rows"], sizes["queries"], sizes["width"],
               "yes" if has_bias else "no",
               f"{run['bytes_per_second'] * 1e-9:.1f}" if is_decode else "",
               percent(share(run["bytes_per_second"], machine.memory(1))) if is_decode else "",
               f"{run['GFLOP/s']:.1f}", percent(share(run["GFLOP/s"], machine.arithmetic("multiply-adds", 1)))]
        print(f"| {' | '.join(row)} |")


def machine_line(machine):
    parts = []
    for n_threads in (1, 2):
        parts.append(f"{n_threads} thread{'s' if n_threads > 1 else ''}: {machine.memory(n_threads) * 1e-9:.1f} GB/s of memory, "
                     f"{machine.arithmetic('multiply-adds', n_threads):.0f} GFLOP/s of float multiply-adds, "
                     f"{machine.arithmetic('byte products', n_threads):.0f} Gop/s of byte products")
    print("; ".join(parts))


def main():
    parser = arguments.parser(__doc__)
    parser.add_argument("machine", metavar="MACHINE.json", type=arguments.json_file)
    parser.add_argument("kernels", metavar="KERNELS.json", type=arguments.json_file)
    options = parser.parse_args()
    for path, result in (("MACHINE.json", options.machine), ("KERNELS.json", options.kernels)):
        if not isinstance(result, dict) or not isinstance(result.get("benchmarks"), list):
            sys.exit(f"roofline_table.py: {path} is no result of --benchmark_format=json")
    machine, kernels = Machine(options.machine), rates_of(options.kernels)
    if not machine.memory(1):
        sys.exit("roofline_table.py: MACHINE.json has no BM_read_memory")
    machine_line(machine)
    if any(name.startswith("prefill/") for name in kernels):
        print()
        weights_table(kernels, machine)
    if any(name.startswith("attend_") for name in kernels):
        print()
        attention_table(kernels, machine)


if __name__ == "__main__":
    main()
