"""The report's style sheet: one column that reads on a phone, light and dark, no font or picture to load."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f6f3; --card: #ffffff; --ink: #1b1d22; --muted: #585d68; --line: #d9dbe0; --grid: #e9eaed;
  --accent: #2450b8; --soft: #dfe7fa; --other: #6b7180; --warn: #8a3b00;
  --warn-soft: #fdeeda;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121317; --card: #1a1c21; --ink: #e8e9ed; --muted: #a6abb7; --line: #363a43; --grid: #282b32;
    --accent: #93b0ff; --soft: #26345c; --other: #9097a6; --warn: #ffc184; --warn-soft: #3a2a17;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere;
}
header, main, footer { max-width: 62rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 2.5rem; }
h1 { margin: 0; font-size: 1rem; font-weight: 600; color: var(--muted); }
.headline {
  margin: .5rem 0 1rem; font-size: clamp(1.35rem, 1rem + 1.9vw, 2rem); line-height: 1.3; font-weight: 650;
  letter-spacing: -.012em; text-wrap: balance;
}
.headline em { font-style: normal; color: var(--accent); }
.note {
  margin: 0 0 1rem; padding: .7rem 1rem; border-left: .25rem solid var(--accent); border-radius: .4rem;
  background: var(--soft);
}
.note.warning { border-color: var(--warn); background: var(--warn-soft); }
.note.warning strong { color: var(--warn); }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 8.5rem), 1fr)); gap: .75rem;
  margin: 1.25rem 0 0;
}
.tiles div {
  padding: .8rem 1rem; background: var(--card); border: 1px solid var(--line); border-radius: .7rem;
}
.tiles dt { font-size: .82rem; color: var(--muted); }
.tiles dd { margin: 0; }
.tiles dd b { display: block; font-size: 1.45rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tiles dd span { font-size: .82rem; color: var(--muted); }
nav ul {
  display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: 1.4rem 0; padding: 0; list-style: none;
  font-size: .92rem;
}
nav a { display: inline-block; padding: .2rem 0; color: var(--accent); text-underline-offset: .2em; }
section {
  margin: 0 0 1rem; padding: 1.25rem 1.5rem 1.5rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .9rem;
}
h2 { margin: 0 0 .3rem; font-size: 1.2rem; line-height: 1.35; }
h3 { margin: 1rem 0 .25rem; font-size: .88rem; font-weight: 600; color: var(--muted); }
section > p { margin: 0 0 1rem; max-width: 46rem; color: var(--muted); }
.sides { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1.25rem 2.5rem; align-items: start; }
figure { margin: 0; max-width: 25rem; width: 100%; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 12px system-ui, sans-serif; fill: var(--muted); font-variant-numeric: tabular-nums; }
svg .name { fill: var(--ink); }
svg .strong { font-weight: 650; fill: var(--ink); }
svg .grid { stroke: var(--grid); }
svg .axis { stroke: var(--line); }
svg .rule { stroke: var(--other); stroke-dasharray: 4 4; stroke-width: 1.5; }
svg .accent.line, svg .other.line { fill: none; }
svg .line { stroke-width: 2.25; stroke-linejoin: round; }
svg .whisker { stroke-width: 2.25; stroke-linecap: round; }
svg .band { opacity: .16; stroke: none; }
.accent { stroke: var(--accent); fill: var(--accent); }
.other { stroke: var(--other); fill: var(--other); }
.legend {
  display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .4rem 0 0; padding: 0; list-style: none;
  font-size: .85rem; color: var(--muted);
}
.legend svg { display: inline-block; width: 1.6em; height: .7em; margin-right: .4em; }
.scroll { overflow-x: auto; border-radius: .3rem; }
table {
  width: 100%; border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal;
}
caption { text-align: left; padding-bottom: .3rem; font-size: .82rem; color: var(--muted); }
td { white-space: nowrap; }
th, td {
  padding: .38rem .5rem; text-align: right; vertical-align: top; border-top: 1px solid var(--line);
  font-weight: 400;
}
th:first-child { padding-left: 0; text-align: left; overflow-wrap: anywhere; min-width: 6rem; }
td:last-child, thead th:last-child { padding-right: 0; }
thead th { color: var(--muted); font-size: .82rem; border-top: 0; }
.strong th, .strong td { font-weight: 650; }
main dl {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--least, 17rem)), 1fr));
  gap: .9rem 1.75rem; margin: 0;
}
main dt { font-size: .82rem; color: var(--muted); }
main dd { margin: 0; }
details { border-top: 1px solid var(--line); }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { padding: .6rem 0; cursor: pointer; }
summary .meta { display: block; padding-left: 1.1rem; }
summary .meta { color: var(--muted); font-size: .85rem; font-variant-numeric: tabular-nums; }
.answers { display: grid; grid-template-columns: minmax(0, 1fr); gap: 0 1.5rem; padding-bottom: 1rem; }
.text {
  padding: .7rem .9rem; max-height: 22rem; overflow: auto; contain: paint; white-space: pre-wrap;
  unicode-bidi: isolate; background: var(--page); border: 1px solid var(--line); border-radius: .5rem;
  font-size: .92rem;
}
svg .whisker, .legend .accent, .legend .other { stroke-width: 2.25; }
.whole { white-space: nowrap; }
figure dl { --least: 11rem; margin-top: 1.25rem; }
code { font: .88em ui-monospace, monospace; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: .3rem; }
footer { padding-top: .5rem; padding-bottom: 2.5rem; font-size: .85rem; color: var(--muted); }
@media (max-width: 34rem) {
  header { padding-top: 1.5rem; }
  section { padding: 1rem; margin-inline: -.5rem; }
  table { font-size: .84rem; }
  th, td { padding: .38rem .3rem; }
  th:first-child { min-width: 4.4rem; }
  .tiles div { padding: .7rem .8rem; }
  .tiles dd b { font-size: 1.25rem; }
}
@media (min-width: 50rem) {
  .sides { grid-template-columns: 25rem minmax(0, 1fr); }
  .answers { grid-template-columns: 1fr 1fr; }
  .answers .wide { grid-column: 1 / -1; }
}
"""
