"""Templates of the gallery: HTML, style and script, without any library and without any address."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<dl>{facts}</dl>
<nav>{links}</nav>
{body}
{script}
</body>
</html>
"""

FIGURE = """<section id="{anchor}">
<h2>{title}</h2>
{legend}{note}
{cards}
</section>
"""

CARD = """<article><h3>{name}</h3><div class="panels">{panels}</div></article>
"""

PANEL = """<figure><figcaption>{title}</figcaption>
<img src="{source}" alt="{alt}" loading="lazy"><small>{caption}</small></figure>
"""

CLICKABLE = """<article class="click" data-rows="{rows}" data-columns="{columns}" data-similarity="{data}">
<h3>{name}</h3><div class="pair">
<figure><figcaption>click a patch</figcaption><div class="stage" style="aspect-ratio:{ratio}">
<img src="{source}" alt="{alt}"><canvas role="img" aria-label="the chosen patch"></canvas></div></figure>
<figure><figcaption>similarity to it</figcaption><div class="stage" style="aspect-ratio:{ratio}">
<canvas role="img" aria-label="similarity of every patch to the chosen one"></canvas></div></figure>
</div><small></small><noscript><p>The maps need JavaScript, which this page brings along.</p></noscript></article>
"""

# Small images are shown pixel by pixel; panels wrap, so that nothing scrolls sideways.
STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 90rem; margin: 0 auto;
  padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 0 0 .4rem; }
h3 { font-size: .95rem; margin: 0 0 .3rem; font-weight: 600; white-space: pre-wrap; }
section { border-top: 2px solid #ccc; padding: 1rem 0 .5rem; margin-top: 1rem; }
section p { max-width: 50rem; margin: .4rem 0 .8rem; color: #444; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: 0 0 .8rem; font-size: .9rem; }
dt { color: #555; } dd { margin: 0; }
nav { display: flex; flex-wrap: wrap; gap: .4rem; }
nav a { border: 1px solid #999; border-radius: 1rem; padding: .2rem .8rem; color: #06c; text-decoration: none; }
ul { list-style: none; padding: 0; margin: .3rem 0; font-size: .9rem; }
li { display: flex; align-items: center; gap: .5rem; margin: .15rem 0; }
li i { flex: 0 0 1.8rem; height: .9rem; border: 1px solid #aaa; }
li i.ramp { flex-basis: 7rem; }
article { border: 1px solid #ddd; border-radius: 6px; padding: .6rem; margin: 0 0 .7rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 13.5rem)); gap: .6rem; }
.clickable { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); gap: .7rem; }
.clickable article { margin: 0; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 22rem)); gap: .6rem; align-items: end; }
figure { margin: 0; }
.panels figure { display: grid; grid-row: span 3; grid-template-rows: subgrid; row-gap: .15rem; align-content: start; }
figcaption { font-size: .8rem; line-height: 1.25; font-weight: 600; align-self: end; padding-bottom: .1rem; }
small { font-size: .78rem; line-height: 1.25; color: #444; }
img, canvas { width: 100%; image-rendering: pixelated; display: block; }
.stage { position: relative; }
.stage img, .stage canvas { position: absolute; inset: 0; width: 100%; height: 100%; }
.click canvas { cursor: crosshair; touch-action: manipulation; }
@media (max-width: 40rem) {
  body { padding: .6rem; }
  .panels { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
"""

# COLOURS is replaced by the 256 colours of the map.
SCRIPT = """<script>
"use strict";
const colours = COLOURS;
for (const card of document.querySelectorAll(".click")) {
  const rows = Number(card.dataset.rows), columns = Number(card.dataset.columns), count = rows * columns;
  const levels = Uint8Array.from(atob(card.dataset.similarity), letter => letter.charCodeAt(0));
  const [frame, map] = card.querySelectorAll("canvas");
  const text = card.querySelector("small");
  map.width = columns; map.height = rows;
  const show = patch => {
    const context = map.getContext("2d"), pixels = context.createImageData(columns, rows);
    for (let other = 0; other < count; other++) {
      const [red, green, blue] = colours[levels[patch * count + other]];
      pixels.data.set([red, green, blue, 255], 4 * other);
    }
    context.putImageData(pixels, 0, 0);
    const row = Math.floor(patch / columns), column = patch % columns;
    const scale = 16, drawing = frame.getContext("2d");
    frame.width = columns * scale; frame.height = rows * scale;
    drawing.strokeStyle = "#ff1a1a"; drawing.lineWidth = 3;
    drawing.strokeRect(column * scale + 1, row * scale + 1, scale - 2, scale - 2);
    text.textContent = `row ${row}, column ${column} of ${rows} x ${columns}`;
  };
  const choose = event => {
    const box = event.currentTarget.getBoundingClientRect();
    const at = (position, length, cells) => Math.min(cells - 1, Math.max(0, Math.floor(position / length * cells)));
    const row = at(event.clientY - box.top, box.height, rows);
    show(row * columns + at(event.clientX - box.left, box.width, columns));
  };
  frame.addEventListener("click", choose);
  map.addEventListener("click", choose);
  show(Math.floor(rows / 2) * columns + Math.floor(columns / 2));
}
</script>"""
