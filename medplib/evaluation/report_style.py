"""The look of the report: one readable column, tabular digits, light and dark by the reader's own setting, fit for print."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2229; --soft: #5d6673; --paper: #fff; --line: #dfe3e8; --mark: #0072b2; --band: #f5f7f9 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #9aa4b1; --paper: #14171b; --line: #2d333b; --mark: #56b4e9; --band: #1b1f25 }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 1rem; text-wrap: balance }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .6rem }
.note { max-width: 46rem; margin: .3rem 0 }
.rule { max-width: 60rem; margin: .4rem 0 0; color: var(--soft); font-size: .8rem; line-height: 1.45 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem }
th, td { padding: .45rem 1.5rem .45rem .5rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: baseline }
thead th { color: var(--soft); font-size: .8rem; font-weight: 600; border-bottom-width: 2px; white-space: nowrap }
tbody th { font-weight: 500; white-space: nowrap }
tbody tr:hover { background: var(--band) }
.figure { display: inline-grid; grid-template-columns: 3.2em 8.6em 5.6em; align-items: baseline; white-space: nowrap }
.figure .ci, .figure .n, .none { color: var(--soft); font-size: .85em }
.figure .n { grid-column: 3 }
.strip { grid-column: 1 / -1; width: 100%; max-width: 17em; height: .55em; overflow: visible }
.strip .axis { stroke: var(--line); stroke-width: 1 }
.strip .range { stroke: var(--mark); stroke-width: 2; opacity: .55 }
.strip circle { fill: var(--mark) }
.gallery { display: grid; gap: 1.1rem; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)) }
figure { margin: 0 }
figure img { display: block; width: 100%; height: auto; background: #000; border-radius: 4px }
figcaption { margin-top: .35rem; color: var(--soft); font-size: .8rem; line-height: 1.4; overflow-wrap: anywhere }
@media print { main { max-width: none; padding: 0 } section, figure { break-inside: avoid } }
"""
