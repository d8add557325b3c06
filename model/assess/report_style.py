"""The report's style: one sheet, inline. Light and dark by the reader's setting, narrow screens, paper."""

CSS = """
:root{--bg:#fff;--card:#f6f7f9;--ink:#1b1f24;--soft:#5b6470;--line:#dfe3e8;--s0:#1f6fb2;--s1:#c2691c;--s2:#3a8a5f;
--s3:#8a5aa8;--bad:#b3261e;--badbg:#fdecea;--good:#2c7a4b;--on:#fff}
@media (prefers-color-scheme:dark){:root{--bg:#14171b;--card:#1c2026;--ink:#e6e9ed;--soft:#9aa4b0;--line:#323841;
--s0:#5aa9e6;--s1:#e59b52;--s2:#6cc291;--s3:#c39bdf;--bad:#ff8a80;--badbg:#3a2020;--good:#7fcf9f;--on:#0d1013}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:72rem;padding:1.5rem 1.25rem 4rem;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI","Noto Sans","Noto Sans CJK SC","PingFang SC",
"Microsoft YaHei",sans-serif}
h1{font-size:1.6rem;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.75rem 0 .4rem;padding-top:1rem;border-top:2px solid var(--line);overflow-wrap:anywhere}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
p{margin:.4rem 0}
a{color:var(--s0)}
.note,figcaption,caption{color:var(--soft);font-size:.86rem}
code,.mono{font-family:ui-monospace,"SF Mono",Consolas,"DejaVu Sans Mono",monospace;
font-size:.86em;overflow-wrap:anywhere}
dl.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(12rem,1fr));gap:.75rem;margin:1rem 0}
dl.facts div{background:var(--card);border-radius:8px;padding:.55rem .8rem}
dl.facts dt{color:var(--soft);font-size:.8rem}
dl.facts dd{margin:0;font-weight:600;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:.5rem 0 1rem}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.32rem .7rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--soft);font-weight:600;font-size:.8rem;vertical-align:bottom}
th:first-child,td:first-child,.left{text-align:left}
th:first-child,td:first-child{padding-left:.35rem}
td .under{display:block;color:var(--soft);font-size:.82em}
.range{color:var(--soft);font-size:.82em}
tr.bad td{background:var(--badbg)}
span.bad{color:var(--bad)}span.good{color:var(--good)}
b.flag{color:var(--bad);font-size:.8rem}
.summary{background:var(--card);border-left:4px solid var(--s0);border-radius:4px;padding:.6rem 1rem;margin:1rem 0}
.summary.warn{border-color:var(--bad)}
.summary ul{margin:.3rem 0;padding-left:1.2rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1.25rem;align-items:start}
.many{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:1rem}
figure{margin:0;min-width:0}
figure h3{margin-top:.6rem}
svg.chart{display:block;width:100%;height:auto}
svg.whisker{width:150px;height:18px;display:inline-block;vertical-align:middle}
svg text{fill:var(--soft);font-family:inherit}
svg .legend,svg .cell{fill:var(--ink)}
svg .on{fill:var(--on)}
svg .grid{stroke:var(--line)}svg .axis{stroke:var(--soft)}
svg .mark{stroke:var(--soft);stroke-dasharray:3 3}
svg .plate{fill:var(--card)}
svg .right{fill:var(--s0)}svg .wrong{fill:var(--s1)}
svg .line{fill:none;stroke-width:2;stroke-linejoin:round}svg .thin{stroke-width:1;opacity:.6}
svg .line.s0{stroke:var(--s0)}svg .line.s1{stroke:var(--s1)}svg .line.s2{stroke:var(--s2)}svg .line.s3{stroke:var(--s3)}
svg .line.bad{stroke:var(--bad)}
svg .dot{stroke:var(--bg);stroke-width:1}
svg .dot.s0{fill:var(--s0)}svg .dot.s1{fill:var(--s1)}svg .dot.s2{fill:var(--s2)}svg .dot.s3{fill:var(--s3)}
svg .dot.bad{fill:var(--bad)}
details{margin:.4rem 0}summary{cursor:pointer;color:var(--s0)}
nav{display:flex;flex-wrap:wrap;gap:.3rem .9rem;font-size:.9rem;margin:.6rem 0}
@media (max-width:40rem){body{padding:1rem .8rem 3rem}th,td{padding:.28rem .45rem}h1{font-size:1.35rem}}
@media print{
:root{--bg:#fff;--card:#f4f5f7;--ink:#000;--soft:#444;--line:#ccc;--s0:#1f6fb2;--s1:#c2691c;--s2:#3a8a5f;--s3:#8a5aa8;
--bad:#b3261e;--badbg:#fdecea;--good:#2c7a4b;--on:#fff}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
body{max-width:none;padding:0;font-size:10.5pt}nav,summary{display:none}
details::details-content{content-visibility:visible;display:block}
figure,tr,.summary,dl.facts div{break-inside:avoid}h2,h3{break-after:avoid}
.scroll{overflow:visible}table{font-size:8.5pt}
}
"""
