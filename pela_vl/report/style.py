"""The report page's CSS. Colours are Okabe and Ito's, which colour-blind readers can distinguish; lighter in the dark
scheme.
"""

CSS = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --rule: #dde2e8; --paper: #ffffff; --tint: #f4f6f9;
  --m0: #4b5563; --m1: #c2510a; --m2: #0068a8; --m3: #8a5080; --hit: #00795a; --miss: #6b7480; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --rule: #303844; --paper: #14181e;
  --tint: #1c222b; --m0: #c3cad4; --m1: #f0944d; --m2: #56b4e9; --m3: #d79bc8; --hit: #35c79b; --miss: #7f8996; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
  -webkit-text-size-adjust: 100%; }
main, footer { max-width: 1160px; margin: 0 auto; padding: 0 20px; }
h1 { font-size: 30px; line-height: 1.2; margin: 44px 0 12px; letter-spacing: -.01em; }
h2 { font-size: 21px; margin: 56px 0 6px; padding-top: 14px; border-top: 1px solid var(--rule); }
h3 { font-size: 16px; margin: 30px 0 6px; }
h4 { font-size: 14px; margin: 0; font-weight: 600; }
p { margin: 6px 0 14px; max-width: 88ch; }
p.lead { font-size: 18px; }
small, .soft { color: var(--soft); }
.num { font-variant-numeric: tabular-nums; }
.m0 { --c: var(--m0); } .m1 { --c: var(--m1); } .m2 { --c: var(--m2); } .m3 { --c: var(--m3); }

.keys { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; margin: 24px 0 8px; }
.key { background: var(--tint); border-radius: 8px; padding: 14px 16px; border-left: 4px solid var(--c, var(--rule)); }
.key b { display: block; font-size: 26px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.key span { color: var(--soft); font-size: 14px; line-height: 1.35; display: block; margin-top: 3px; }

.scroll { overflow-x: auto; margin: 10px 0 22px; }
table { border-collapse: collapse; width: 100%; font-size: 15px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 8px; border-bottom: 1px solid var(--rule); white-space: nowrap;
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--soft); font-weight: 500; font-size: 13px; vertical-align: bottom; }
tbody th { font-weight: 600; }
tr.group th { padding-top: 18px; color: var(--soft); font-weight: 500; font-size: 13px; }
td small { display: block; font-size: 12px; line-height: 1.2; }
th.dotted { position: relative; padding-left: 18px; }
.dotted::before { content: ""; position: absolute; left: 0; top: 13px; width: 9px; height: 9px; border-radius: 50%;
  background: var(--c); }
.bar { display: block; height: 4px; background: var(--tint); margin-top: 3px; min-width: 60px; }
.bar i { display: block; height: 100%; background: var(--c); }

.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 12px 36px; }
.grid4 { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 236px), 1fr)); gap: 18px 22px;
  margin: 10px 0 26px; }
figure { margin: 0; max-width: 620px; min-width: 0; }
.grid4 figure { max-width: 340px; display: flex; flex-direction: column; justify-content: flex-end; }
figcaption { font-size: 14px; line-height: 1.35; margin-bottom: 4px; }
figcaption b { font-weight: 600; }
figcaption small { display: block; font-size: 13px; }

svg.chart { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 11px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .name text { font-size: 12px; font-weight: 600; fill: var(--c, var(--ink)); }
svg .name text, svg .note text { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
svg .note text { fill: var(--ink); }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .line { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; }
svg .band { fill: var(--c); opacity: .2; }
svg .dot { fill: var(--c); stroke: var(--paper); stroke-width: 1.5; }
svg .level { stroke: var(--c); stroke-width: 1.2; stroke-dasharray: 5 4; }
svg .arrow { stroke: var(--soft); fill: var(--soft); stroke-width: 1.3; }
svg .kept { fill: var(--m2); opacity: .1; } svg .mark { stroke: var(--m2); stroke-width: 1.2; }
svg .spectrum { stroke: var(--ink); stroke-width: 1.1; }
svg .shade0 { opacity: .35; } svg .shade1 { opacity: .55; } svg .shade2 { opacity: .75; }

.strips { margin: 8px 0; max-width: 900px; }
.strips .tower { margin: 14px 0 2px; }
.strip { display: grid; grid-template-columns: minmax(120px, 210px) 1fr 84px; gap: 12px; align-items: center;
  font-size: 14px; line-height: 1.3; }
.strip .track { position: relative; height: 24px;
  background: repeating-linear-gradient(90deg, var(--rule) 0 1px, transparent 1px 25%); border-right: 1px solid
  var(--rule); }
.strip .track i { position: absolute; top: 6px; width: 12px; height: 12px; margin-left: -6px; border-radius: 50%;
  background: var(--m1); opacity: .6; }
.strip .num { color: var(--soft); font-size: 13px; }
.ticks .track { background: none; border: 0; }
.ticks b { position: absolute; transform: translateX(-50%); font-weight: 400; font-size: 12px; color: var(--soft); }
details { margin: 14px 0; } summary { cursor: pointer; color: var(--soft); font-size: 14px; }
details table { font-size: 13px; }

.query { display: grid; grid-template-columns: 200px 1fr; gap: 8px 28px; padding: 20px 0; align-items: start; }
.query + .query, .shelf + .shelf { border-top: 1px solid var(--rule); }
.query > div > img { width: 170px; height: auto; display: block; border-radius: 4px; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 240px), 1fr)); gap: 16px 26px; }
.answers h4, .shelf h4 { color: var(--c); margin-bottom: 4px; }
.answers ol, .truth { list-style: none; margin: 0; padding: 0; font-size: 14px; line-height: 1.35; }
.answers li { display: grid; grid-template-columns: 54px 1fr; gap: 4px; padding: 3px 0; }
.answers li.miss { color: var(--soft); }
.truth { font-size: 13px; color: var(--soft); margin-top: 8px; } .truth li { margin-bottom: 5px; }
.verdict { font-size: 12px; white-space: nowrap; color: var(--miss); line-height: 1.5; }
.verdict svg { width: 12px; height: 12px; vertical-align: -1.5px; margin-right: 4px; }
.hit .verdict { color: var(--hit); font-weight: 700; }
.shelf { padding: 20px 0; }
.shelf blockquote { margin: 0 0 10px; font-size: 17px; }
.shelf .answers { grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); }
.images { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 6px; }
.images figure { max-width: 110px; }
.images img { width: 100%; height: auto; display: block; border-radius: 3px; border: 3px solid transparent; }
.images .hit img { border-color: var(--hit); }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 190px), 1fr)); gap: 16px; }
.samples figure { display: grid; grid-template-columns: 72px 1fr; gap: 10px; font-size: 13px; line-height: 1.35; }
.samples img { width: 72px; image-rendering: pixelated; border-radius: 4px; }
.samples .hit { color: var(--hit); } .samples .miss { color: var(--m1); }
.confusion img { width: 100%; border: 1px solid var(--rule); border-radius: 4px; background: white; }
footer { margin-top: 56px; padding-top: 16px; padding-bottom: 40px; color: var(--soft); font-size: 14px; }
footer p { margin: 2px 0; } code { font-size: .95em; }
@media (max-width: 640px) {
  main, footer { padding: 0 14px; } h1 { font-size: 25px; margin-top: 28px; } p.lead { font-size: 17px; }
  th, td { padding: 6px 4px; } table { font-size: 13px; } thead th { font-size: 12px; }
  th { white-space: normal; } th.dotted { min-width: 84px; line-height: 1.3; padding-left: 15px; }
  .dotted::before { top: 10px; } td small { font-size: 11px; }
  .bar { min-width: 40px; }
  .query { grid-template-columns: 1fr; } .query > div { display: grid; grid-template-columns: 120px 1fr; gap: 12px; }
  .query > div.answers { grid-template-columns: 1fr; } .query > div > img { width: 120px; } .truth { margin-top: 0; }
  .strip { grid-template-columns: 1fr 70px; gap: 0 10px; } .strip > span:first-child { grid-column: 1 / 3; }
  .ticks > span:first-child { display: none; }
  .grid4 { grid-template-columns: 1fr 1fr; gap: 16px 14px; } .grid4 svg text { font-size: 14px; }
  figcaption, figcaption small { font-size: 13px; }
  .keys { grid-template-columns: 1fr; gap: 10px; } .key { padding: 10px 12px; } .key b { font-size: 21px; }
}
@media print { .query, .shelf, figure { break-inside: avoid; } }
"""
