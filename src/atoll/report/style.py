"""The report's style sheet: light and dark by the reader's system, and one for paper."""

from __future__ import annotations

__all__ = ["STYLE"]

_LIGHT = """
--page:#f3f7f7;--card:#fff;--ink:#12262b;--soft:#566b71;--rule:#dde7e8;--wash:#eef4f4;
--federated:#0b7d77;--alone:#d97a1f;--pooled:#5558c4;--central:#5558c4;--train:#8b9ba1;
--good:#157f4b;--fair:#a56300;--bad:#b93434;--info:#2668a8;
--c0:#0b7d77;--c1:#e3a03c;--c2:#5558c4;--c3:#cb5a41;--c4:#67a653;--c5:#3090c7;--c6:#b5609a;--c7:#8a785a;
--c8:#a9b536;--c9:#88959d;
--surplus:#b9c6ca;--late:#e8b33a;--dropped:#e07b39;--unavailable:#7d93a0;--refused:#b5609a;
--failed:#c43c3c;--missing:#d9965f;--void:#cdbfe6;--underway:#cfe3e2;
"""

_DARK = """
--page:#0c1619;--card:#142125;--ink:#e2edef;--soft:#93a9af;--rule:#263a40;--wash:#1a2a2f;
--federated:#3ac7ba;--alone:#f0a050;--pooled:#9a9df5;--central:#9a9df5;--train:#7f949b;
--good:#5fd398;--fair:#edb95c;--bad:#f28a8a;--info:#7fb8ee;
--c0:#35b8ac;--c1:#e8b15d;--c2:#8f92ee;--c3:#e07f69;--c4:#86c274;--c5:#5fb2e2;--c6:#d088bb;--c7:#b09d7d;
--c8:#c3cd62;--c9:#93a1a9;
--surplus:#43565c;--late:#e3b64c;--dropped:#e18a51;--unavailable:#6d8592;--refused:#c981b2;
--failed:#e26464;--missing:#cd8f5f;--void:#6f6392;--underway:#2b4a4a;
"""

_MISSING = (
    "surplus",
    "late",
    "dropped",
    "unavailable",
    "refused",
    "failed",
    "missing",
    "void",
    "underway",
)

_KINDS = "\n".join(
    [
        *(f".c{i}{{--k:var(--c{i})}}" for i in range(10)),
        *(
            f".k-{name}{{--k:var(--{name})}}"
            for name in ("federated", "alone", "pooled", "central", "train")
        ),
        ".m-contributed{--k:var(--federated)}",
        *(f".m-{name}{{--k:var(--{name})}}" for name in _MISSING),
        ".edge{--k:var(--soft)}",
    ]
)

_PAGE = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:0 20px 48px}
header{background:linear-gradient(135deg,#06474a,#0b7d77 55%,#3aa9a0);color:#fff;padding:36px 0 60px}
header>div{max-width:1080px;margin:0 auto;padding:0 20px;position:relative}
header .atoll{position:absolute;right:20px;top:-6px;width:120px;opacity:.32}
header .atoll *{fill:none;stroke:#fff;stroke-linecap:round}
@media(max-width:620px){header .atoll{display:none}}
.brand{margin:0;font-size:.85rem;letter-spacing:.08em;text-transform:uppercase;opacity:.85}
h1{margin:.1em 0 .35em;font-size:clamp(1.6rem,4vw,2.4rem);line-height:1.15;overflow-wrap:anywhere;
max-width:85%}
.lead{margin:.7em 0 0;max-width:70ch;font-size:1.05rem;overflow-wrap:anywhere}
.status{display:inline-block;padding:3px 13px;border-radius:99px;background:#fff;font-weight:600;
font-size:.92rem;color:#12262b;overflow-wrap:anywhere}
.status::before{content:"";display:inline-block;width:.62em;height:.62em;border-radius:9px;margin-right:.5em;
background:#888}
.status.good::before{background:#1d9a5d}.status.fair::before{background:#dd9515}
.status.bad::before{background:#d03b3b}.status.info::before{background:#2f7fca}
.tiles{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));margin:-38px 0 22px}
.tile{background:var(--card);border:1px solid var(--rule);border-radius:14px;padding:13px 16px;
box-shadow:0 4px 14px rgba(6,50,55,.07)}
.tile b{display:block;font-size:1.5rem;line-height:1.25;font-variant-numeric:tabular-nums;
overflow-wrap:anywhere}
.tile span{color:var(--soft);font-size:.84rem}
section{background:var(--card);border:1px solid var(--rule);border-radius:16px;padding:22px 24px;
margin:0 0 20px}
h2{margin:0 0 .5em;font-size:1.28rem}
h3{margin:1.3em 0 .4em;font-size:1.02rem}
p{margin:.4em 0 .9em;max-width:80ch}
.note,.empty,figcaption,caption{color:var(--soft);font-size:.9rem}
.answer{font-size:1.08rem}
.notes{border-left:4px solid var(--fair)}
.failure{border-left:4px solid var(--bad)}
ul{margin:.3em 0;padding-left:1.2em}
a{color:var(--info)}
.scroll{overflow-x:auto}
.scroll>svg{min-width:640px}
table{border-collapse:collapse;width:100%;margin:.4em 0 .8em;font-size:.93rem;
font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.4em 0}
th,td{padding:7px 10px;text-align:right;border-bottom:1px solid var(--rule);unicode-bidi:isolate}
td.words,th:first-child,td:first-child{text-align:left}
td.words,th.words{text-align:left;min-width:12em}
thead th{color:var(--soft);font-weight:600;font-size:.84rem;vertical-align:bottom;white-space:nowrap}
tbody th{font-weight:600;min-width:8.5em;max-width:22em;overflow-wrap:break-word}
tr.total>*{border-top:2px solid var(--rule);border-bottom:0;font-weight:700}
tbody tr:hover{background:var(--wash)}
.tint{background:color-mix(in srgb,var(--alone) var(--t,0%),transparent)}
.better{color:var(--good)}.worse{color:var(--bad)}.same,.unknown{color:var(--soft)}
.way::before{content:"";display:inline-block;width:.66em;height:.66em;border-radius:9px;background:var(--k);
margin-right:.4em}
.charts{display:grid;gap:18px 26px;grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr))}
figure{margin:.6em 0 1em;break-inside:avoid;min-width:0}
figcaption{margin-bottom:.3em}
.charts figcaption{font-weight:600;color:var(--ink)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:3px 16px;padding:0;margin:.2em 0 .6em;font-size:.86rem}
.legend li{overflow-wrap:anywhere}
.key{display:inline-block;width:.78em;height:.78em;border-radius:3px;background:var(--k);margin-right:.45em}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:12px;font-family:inherit}
svg .axis{font-size:12px;font-style:italic}
svg .name{fill:var(--ink);font-size:13px}svg .small{font-size:10px}
.grid line{stroke:var(--rule);stroke-width:1}
.series .line{fill:none;stroke:var(--k);stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
.series circle{fill:var(--k)}
.series circle:hover,.dot:hover{stroke:var(--ink);stroke-width:2}
.k-train .line{stroke-dasharray:5 4;stroke-width:1.6}
.band{fill:var(--k);fill-opacity:.16}
.fill{fill:var(--k)}.fill:hover{stroke:var(--ink);stroke-width:1}
.dot{fill:var(--k);stroke:var(--card);stroke-width:1.5}
.dot.k-pooled{fill:var(--card);stroke:var(--k);stroke-width:2.6;r:8px}
.dot.edge{fill:var(--k);r:3px}
.joined{stroke:var(--rule);stroke-width:3}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(210px,100%),1fr));
gap:9px 24px;margin:.4em 0}
.facts dt{color:var(--soft);font-size:.82rem}
.facts dd{margin:0 0 .5em;overflow-wrap:anywhere}
details{margin:.7em 0}
summary{cursor:pointer;color:var(--info);font-weight:600;font-size:.93rem}
pre{background:var(--wash);border-radius:10px;padding:14px;overflow:auto;font-size:.8rem;line-height:1.45;
max-height:34em;white-space:pre-wrap;overflow-wrap:anywhere}
code{font:.88em ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}
footer{color:var(--soft);font-size:.85rem;text-align:center}
:focus-visible{outline:2px solid var(--info);outline-offset:2px}
"""

_PAPER = """
body{font-size:11pt;print-color-adjust:exact;-webkit-print-color-adjust:exact}
header{padding:18px 0 46px}main{max-width:none}
section{break-inside:auto;box-shadow:none;border-radius:0;border-width:0 0 1px;padding:12px 0}
h2{break-after:avoid}tr{break-inside:avoid}
.scroll{overflow:visible}.scroll>svg{min-width:0}
details:not([open])::details-content{content-visibility:visible;block-size:auto}
pre{max-height:none}
"""

STYLE = (
    f":root{{color-scheme:light dark;{_LIGHT}}}"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    f"{_KINDS}{_PAGE}@media print{{{_PAPER}}}"
)
"""The whole style sheet; it refers to nothing outside the page."""
