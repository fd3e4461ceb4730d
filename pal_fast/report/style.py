"""The page's style and its one script, which sorts galleries."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --back: #fbfbfa; --card: #ffffff; --ink: #1d1f23; --soft: #5d636d; --rule: #dcdee2; --shade: 31, 98, 176;
  --right: #1a7f4b; --wrong: #b3321f;
  --c0: #6b7280; --c1: #1f62b0; --c2: #c2570c; --c3: #0e8a6d; --c4: #9a3fb0; --c5: #b08800; --c6: #d0316f;
  --c7: #3f8fb5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14161a; --card: #1d2026; --ink: #e8e9ec; --soft: #a3a9b5; --rule: #343942; --shade: 58, 118, 205;
    --right: #5fd097; --wrong: #ff8a75;
    --c0: #a0a7b4; --c1: #6fb1ff; --c2: #ff9d57; --c3: #4fd6b0; --c4: #d78bea; --c5: #e6c34a; --c6: #ff7fae;
    --c7: #8fd0ee;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 1240px; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere; }
p { max-width: 95ch; margin: .4rem 0; }
.lead, .note { color: var(--soft); }
.note { font-size: .875rem; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .875rem; font-weight: 600; margin-bottom: .25rem; overflow-wrap: anywhere; }
.charts, .matrices { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); }
.chart, .matrix, .card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: .75rem; }
.chart svg { display: block; width: 100%; height: auto; }
.chart text { font-size: 11px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.dashed { stroke-dasharray: 5 4; }
.dot { fill: var(--c); stroke: transparent; stroke-width: 9; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); } .c5 { --c: var(--c5); } .c6 { --c: var(--c6); } .c7 { --c: var(--c7); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .875rem; margin: 0 0 .75rem; padding: 0;
  list-style: none; }
.legend li { overflow-wrap: anywhere; }
.key { display: inline-block; width: 1.4em; height: 0; border-top: 3px solid var(--c); margin-right: .5em;
  vertical-align: middle; }
.key.dashed { border-top-style: dashed; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; }
th, td { text-align: left; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td { white-space: nowrap; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 5.5rem; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap;
  padding-left: .5rem; }
.confusion { margin: 0 auto 0 0; font-size: .8rem; }
.confusion th, .confusion td { border: 0; padding: .3rem .35rem; text-align: right; vertical-align: middle;
  font-variant-numeric: tabular-nums; }
.confusion thead th { vertical-align: bottom; text-align: center; font-weight: 400; padding: .2rem; }
.confusion thead span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; }
.confusion tbody th { font-weight: 400; white-space: nowrap; }
.confusion .corner { color: var(--soft); font-size: .7rem; vertical-align: bottom; min-width: 0; white-space: nowrap; }
.confusion tbody td[style] { min-width: 2.1rem; text-align: center; border-radius: 3px;
  background: rgba(var(--shade), calc(var(--share) * .92 + .03)); }
.confusion .strong { color: #fff; }
.confusion .recall { color: var(--soft); white-space: nowrap; padding-left: .6rem; }
.sort { font-size: .875rem; color: var(--soft); }
select { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--rule); border-radius: 5px;
  padding: .15rem .3rem; max-width: 100%; }
.cards { display: grid; gap: .75rem; margin-top: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, max(350px, var(--looks) * 120px)), 1fr)); }
.card h4 { display: flex; justify-content: space-between; gap: .75rem; margin: 0 0 .4rem; font-size: .9rem; }
.card .name { font-weight: 400; font-size: .75rem; color: var(--soft); overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; direction: rtl; min-width: 0; align-self: center; }
.looks { display: grid; gap: .5rem; grid-template-columns: repeat(var(--looks), minmax(0, 1fr)); }
.looks figcaption { font-size: .75rem; font-weight: 400; color: var(--soft); white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; margin: 0; }
.looks img, .looks .face { display: block; width: 100%; height: auto; border-radius: 5px; }
.face circle { fill: #19e3d0; }
.below { font-size: .7rem; line-height: 1.35; margin: .25rem 0 0; font-variant-numeric: tabular-nums; }
.right { color: var(--right); } .wrong { color: var(--wrong); }
.right::before { content: "\\2713\\00a0"; } .wrong::before { content: "\\2717\\00a0"; }
@media (max-width: 480px) {
  main { padding: 1rem .8rem 3rem; }
  .looks { grid-template-columns: repeat(var(--looks-narrow), minmax(0, 1fr)); }
  .confusion { font-size: .72rem; }
  .confusion th, .confusion td { padding: .3rem .2rem; }
  .confusion tbody td[style] { min-width: 1.75rem; }
  .confusion .recall { padding-left: .3rem; }
}
details { margin: .75rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
pre { overflow-x: auto; font-size: .8rem; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: .75rem; }
"""

SCRIPT: Final = """
for (const select of document.querySelectorAll("select[data-gallery]")) {
  const cards = document.getElementById(select.dataset.gallery);
  select.addEventListener("change", () => {
    const by = (card) => Number(card.dataset[select.value]);
    cards.append(...[...cards.children].sort((one, other) => by(other) - by(one)));
  });
}
"""
