// SPDX-License-Identifier: MIT
// Style sheet of compact-eval's page, as a string literal. The colours s0 to s6 are those of Okabe and Ito,
// "Color universal design"
// (2008), without yellow, which is lost on white; the dark page has lighter ones.
R"css(
:root { color-scheme: light dark; --ground: #ffffff; --panel: #f5f6f8; --ink: #1c2126; --quiet: #5b6570;
  --edge: #d5dae0;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00; --c5: #56b4e9; --c6: #333333; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181d; --panel: #1d232a; --ink: #e6eaee;
  --quiet: #9aa6b2; --edge: #39424d;
  --c0: #6fa8ff; --c1: #ff8a4a; --c2: #2fc79a; --c3: #e5a3c8; --c4: #f2b632; --c5: #86cdf5; --c6: #d8d8d8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 100rem; padding: 1rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2rem 0 0; } p { margin: .25rem 0;
  color: var(--quiet); }
.command { overflow-wrap: anywhere; } code { font-family: ui-monospace, monospace; font-size: .85rem; }
.controls { position: sticky; top: 0; z-index: 1; background: var(--panel); border: 1px solid var(--edge);
  border-radius: .5rem; padding: .5rem .75rem; margin-top: 1rem;
  max-height: 40vh; overflow: auto; }
.controls > label { margin-right: 1rem; } select { font: inherit; max-width: 15rem; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; margin-top: .35rem; } .legend label { display: flex;
  align-items: center; gap: .3rem; font-size: .85rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
figure { margin: 1rem 0; display: inline-block; vertical-align: top; max-width: 100%; } figcaption {
  font-weight: 600; }
svg { display: block; color: var(--ink); } svg text { font: 12px system-ui, sans-serif; fill: var(--quiet); }
  svg text.title { fill: var(--ink); }
.grid { stroke: var(--edge); fill: none; } .anchor path { stroke: var(--ink); stroke-dasharray: 2 4; opacity: .7;
  } svg .anchor text { fill: var(--ink); }
.line, .interval, .stroke, .leader { fill: none; stroke: var(--c); } .line { stroke-width: 2; } .stroke {
  stroke-width: 2; } .interval { opacity: .55; stroke-width: 1.5; }
.leader { opacity: .45; stroke-dasharray: 1 3; }
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); } .s3 { --c: var(--c3); } .s4 {
  --c: var(--c4); } .s5 { --c: var(--c5); } .s6 { --c: var(--c6); }
g[class^=s] { fill: var(--c); } svg text.name { fill: var(--c); font-weight: 600; } .d1 .line {
  stroke-dasharray: 7 4; } .d2 .line { stroke-dasharray: 2 3; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--edge); }
  td.words, th.words { text-align: left; }
th { background: var(--panel); } th button { font: inherit; font-weight: 600; color: inherit; background: none;
  border: 0; padding: 0; cursor: pointer; }
th[aria-sort=ascending] button::after { content: " \2191"; } th[aria-sort=descending] button::after {
  content: " \2193"; }
tbody tr:hover { background: var(--panel); } [hidden], .off { display: none !important; }
@media (max-width: 40rem) { .controls { position: static; max-height: none; } }
@page { size: landscape; }
@media print { :root { color-scheme: light; --ground: #fff; --panel: #fff; --ink: #000; --quiet: #333;
  --edge: #ccc; --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7;
    --c4: #e69f00; --c5: #56b4e9; --c6: #333; }
  .controls { position: static; max-height: none; } .controls > label, #save, input { display: none; } .scroll {
  overflow: visible; } body { font-size: 11px; padding: 0; }
  figure { break-inside: avoid; } svg { max-width: 100%; height: auto; } table { font-size: 7px; } th, td {
  padding: 1px 3px; white-space: normal; } }
)css"
