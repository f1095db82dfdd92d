"""How the report looks, in light and in dark, from a phone to a desk."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root{--page:#f6f7f9;--card:#fff;--ink:#1b2430;--soft:#5a6675;--rule:#dde2e8;--now:#1f6fd1;
--old:#8b96a5;--ref:#c2570c;--bad:#c02626;--good:#1a7f4b;--doubt:#9a6700}
@media(prefers-color-scheme:dark){:root{--page:#12161c;--card:#1b212a;--ink:#e6eaf0;--soft:#9ba7b6;
--rule:#333c49;--now:#5ba3f5;--old:#7d8999;--ref:#f29a52;--bad:#ff7b72;--good:#4cc38a;
--doubt:#e3b341}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:20px 16px 60px}
h1{font-size:1.5rem;margin:.2em 0}h2{font-size:1.15rem;margin:1.8em 0 .5em}
h3{font-size:.95rem;margin:.2em 0 .4em}
section>h3{margin-top:1.2em}section.card>h3{margin-top:.2em}
small,.facts,.legend,figcaption{color:var(--soft);font-size:.82rem}
.facts{margin:.3em 0;overflow-wrap:anywhere}
.warning{margin:.5em 0;padding:.45em .7em;border-left:3px solid var(--doubt);
background:var(--card);font-size:.88rem}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:.88rem}
th,td{text-align:left;vertical-align:top;padding:.5em .7em;border-top:1px solid var(--rule)}
thead th{border-top:0;color:var(--soft);font-weight:600;white-space:nowrap}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.badge{display:inline-block;padding:.05em .55em;border-radius:1em;border:1px solid currentColor;
font-weight:600;font-size:.8rem;white-space:nowrap;color:var(--soft)}
.badge.worse{color:var(--card);background:var(--bad);border-color:var(--bad)}
.badge.better{color:var(--good)}.badge.cannot-tell{color:var(--doubt)}
.grid{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
.card{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:12px 14px}
section>.card{margin-top:12px}main>.card{margin-top:24px;max-width:640px}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:11px;font-family:inherit}svg .label{fill:var(--ink)}
path.grid{stroke:var(--rule);stroke-width:1;fill:none}
path.tick{stroke:var(--soft)}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.line.now{stroke:var(--now)}
.line.stored{stroke:var(--old);stroke-dasharray:5 3}.line.reference{stroke:var(--ref)}
.line.mark{stroke:var(--ref);stroke-width:1.5;stroke-dasharray:4 3}
.bar.now,.bar.right{fill:var(--now)}.bar.wrong{fill:var(--old)}
circle.dot{fill:var(--now)}circle.bad{fill:var(--bad)}
.now-disc{fill:var(--now);fill-opacity:.75}
.stored-disc{fill:none;stroke:var(--old);stroke-width:1.5;stroke-dasharray:3 2}
.legend{margin:.3em 0 0}.key{margin-right:1.1em;white-space:nowrap}
.key i{display:inline-block;width:14px;height:4px;border-radius:2px;margin-right:.4em;
vertical-align:middle;background:var(--rule)}
.key i.now,.key i.right{background:var(--now)}.key i.stored,.key i.wrong{background:var(--old)}
.key i.reference{background:var(--ref)}.key i.bad{background:var(--bad)}
.key i:not([class]),.key i[class=""]{display:none}
.key i.new{background:var(--doubt)}.key i.kept{background:var(--good)}
.pairs{display:grid;gap:12px}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:4px 8px;background:var(--card);padding:10px;
border:1px solid var(--rule);border-radius:8px}
.pair p{grid-column:1/-1;margin:0;font-size:.82rem;font-weight:600;overflow-wrap:anywhere}
figure{margin:0;min-width:0}svg.picture{border-radius:4px;overflow:hidden}
.picture rect{fill:none;vector-effect:non-scaling-stroke;stroke-width:1.2;stroke:#3ddc84;
stroke-opacity:.8}
.picture rect.lost{stroke:#ff3b30;stroke-width:2.5;stroke-opacity:1}
.picture rect.new{stroke:#ffb300;stroke-width:2.5;stroke-opacity:1}
.picture text{font-size:13px;font-weight:600;paint-order:stroke;stroke:#000;stroke-width:3px;
stroke-linejoin:round}
.picture text.lost{fill:#ff8a80}.picture text.new{fill:#ffd54f}
figcaption b.lost{color:var(--bad)}figcaption b.new{color:var(--doubt)}
.falls{display:grid;gap:12px;align-items:start;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr))}
.fall{border-left:4px solid var(--bad)}
.fall h3 small{font-weight:400}.fall .by{font-size:1.7rem;font-weight:700;color:var(--bad);
margin:0 0 .2em;line-height:1.2}
.fall dl{display:flex;flex-wrap:wrap;gap:.2em 1.4em;margin:0}.fall dt{color:var(--soft);
font-size:.78rem}.fall dd{margin:0;font-size:.9rem;font-variant-numeric:tabular-nums}
.fall .facts{margin:1em 0 0;border-top:1px solid var(--rule);padding-top:.6em}
h4{margin:1em 0 .3em;font-size:.8rem;color:var(--soft);font-weight:600}
.clue{display:grid;grid-template-columns:1fr auto;gap:0 .8em;padding:.15em 0;font-size:.9rem}
.clue span{overflow-wrap:anywhere}.clue .figure{text-align:right;white-space:nowrap;
font-variant-numeric:tabular-nums}
.clue .track{grid-column:1/-1;height:5px}.clue .track:empty{display:none}
.clue i{display:block;height:5px;border-radius:3px;min-width:2px;background:var(--bad)}
.clue i.good{background:var(--good)}
code{font:.9em ui-monospace,Menlo,Consolas,monospace}
.said{overflow-wrap:anywhere}
@media(max-width:720px){td,th{padding:.45em .5em}
.stack thead{display:none}.stack tr{display:block;padding:.6em 0;border-top:1px solid var(--rule)}
.stack tr:first-child{border-top:0}.stack td{display:block;border:0;padding:.1em .7em}
.stack td.number{text-align:left;display:inline-block}.stack td.number:empty{display:none}
.stack td.number::before{content:attr(data-what) " ";color:var(--soft)}
.stack td.number br{display:none}}
@media(max-width:560px){.pair{grid-template-columns:1fr}.picture text{font-size:17px}}
@media print{body{background:#fff}}
"""
