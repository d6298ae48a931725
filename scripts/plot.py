# SPDX-License-Identifier: MIT
"""Line plots as SVG, one panel under the other: what the plot_*.py and study_curve.py draw with."""
import math

WIDTH, HEIGHT, LEFT, RIGHT, GAP = 720, 190, 70, 150, 46
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"]  # Okabe and Ito


def _bounds(values, is_log):
    low, high = (min(values), max(values)) if values else (1e-6, 1)
    if is_log:
        low, high = math.floor(math.log10(low)), math.ceil(math.log10(high))
    else:
        low, high = 0, high * 1.05
    return low, high if high > low else low + 1


def panel(top, title, series, x_max, is_log=False, x_ticks=None):
    """SVG elements of one panel. series: {name: [(x, y or None)]}. With x_ticks the x axis is logarithmic and has
    these ticks; without, it goes from 0 to x_max in quarters."""
    shown = {name: [(x, y) for x, y in points if y is not None and (y > 0 or not is_log)]
             for name, points in series.items()}
    low, high = _bounds([y for points in shown.values() for _, y in points], is_log)

    def x_of(x):
        width = WIDTH - LEFT - RIGHT
        if x_ticks:
            return LEFT + width * math.log(x / x_ticks[0]) / math.log(x_ticks[-1] / x_ticks[0])
        return LEFT + width * x / x_max

    def y_of(y):
        return top + HEIGHT * (1 - ((math.log10(y) if is_log else y) - low) / (high - low))

    out = [f'<text x="{LEFT}" y="{top - 10}" font-weight="bold">{title}</text>']
    for tick in range(int(low), int(high) + 1) if is_log else [high * i / 4 for i in range(5)]:
        y = y_of(10.0 ** tick if is_log else tick)
        label = f"1e{tick}" if is_log else f"{tick:.0f}" if high >= 4 else f"{tick:.2f}"
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for x in x_ticks or [x_max * i / 4 for i in range(5)]:
        out.append(f'<text x="{x_of(x):.1f}" y="{top + HEIGHT + 16}" text-anchor="middle">{x:.0f}</text>')
    for colour, (name, points) in zip(COLOURS, shown.items()):
        if not points:
            continue
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = points[-1]
        out.append(f'<text x="{x_of(x) + 6:.1f}" y="{y_of(y) + 4:.1f}" fill="{colour}">{name}</text>')
    return out


def page(panels):
    """A whole SVG. panels: argument dictionaries of panel(), without top."""
    height = len(panels) * (HEIGHT + GAP) + GAP
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
           f'font-size="12"><rect width="100%" height="100%" fill="white"/>']
    for i, arguments in enumerate(panels):
        out += panel(GAP + i * (HEIGHT + GAP), **arguments)
    return "\n".join(out + ["</svg>"])
