"""The frame of the page: quiet, readable on a screen and on paper, nothing loaded from elsewhere."""

HTML = """<!DOCTYPE html>
<html lang="en" xmlns="http://www.w3.org/1999/xhtml">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<title>The report's systems, trained again</title>
<style>
body { font: 15px/1.5 "DejaVu Sans", system-ui, sans-serif; color: #1f2933; max-width: 66rem;
  margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.4rem; border-bottom: 1px solid #c9d1da; }
h3 { font-size: 1.02rem; margin-top: 1.6rem; }
h1 + p { border: 1px solid #c8702a; background: #fdf5ee; padding: .5rem .8rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .55rem; border-bottom: 1px solid #e1e6eb; vertical-align: top; }
th { border-bottom: 1.5px solid #5f6b7a; vertical-align: bottom; }
td { white-space: nowrap; }
td code { white-space: normal; overflow-wrap: anywhere; }
img { max-width: 100%; vertical-align: top; }
@media print { body { max-width: none; } h2, h3 { break-after: avoid; } tr, img { break-inside: avoid; } }
</style>
</head>
<body>
BODY
</body>
</html>
"""
