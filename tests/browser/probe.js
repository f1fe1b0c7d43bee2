/* What the tests ask of a page, once its plots are drawn. */
const rect = (element) => {
  const { left, top, right, bottom } = element.getBoundingClientRect();
  return { left, top, right, bottom, width: right - left, height: bottom - top };
};
const shared = (a, b) =>
  Math.min(Math.min(a.right, b.right) - Math.max(a.left, b.left),
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top));
const isDrawn = (element) => { const box = rect(element); return box.width > 0 || box.height > 0; };
const label = (element) => element.textContent.trim().slice(0, 60);

/* Pairs whose boxes share more than two pixels in both directions. */
function overlapping(elements) {
  const boxes = elements.map((element) => [element, rect(element)]);
  const found = [];
  boxes.forEach(([one, box], index) => {
    for (const [other, its] of boxes.slice(index + 1)) {
      const nested = one.contains(other) || other.contains(one);
      if (!nested && shared(box, its) > 2) found.push(`${label(one)} / ${label(other)}`);
    }
  });
  return found;
}

function plotOf(place) {
  const texts = Array.from(place.querySelectorAll("svg text")).filter(
    (text) => label(text) && isDrawn(text) && getComputedStyle(text).visibility !== "hidden");
  const box = rect(place);
  const outside = texts.filter((text) => {
    const its = rect(text);
    return its.left < box.left - 1 || its.right > box.right + 1 ||
      its.top < box.top - 1 || its.bottom > box.bottom + 1;
  });
  const marks = place.querySelectorAll(
    ".barlayer .point path, .scatterlayer path.js-line, .scatterlayer path.js-fill, .scatterlayer path.point");
  const holds = (trace) => trace.x.some((value, index) => value !== null && trace.y[index] !== null);
  return {
    id: place.id,
    width: box.width,
    traces: place.data.filter(holds).length,
    groups: Array.from(place.querySelectorAll(".barlayer .trace, .scatterlayer .trace")).filter(
      (group) => isDrawn(group)).length,
    marks: Array.from(marks).filter(isDrawn).length,
    titles: Array.from(place.querySelectorAll(".xtitle, .ytitle"), label),
    texts: texts.map(label),
    outside: outside.map(label),
    overlapping: overlapping(texts),
  };
}

function look() {
  for (const details of document.querySelectorAll("details")) details.open = true;
  const blocks = Array.from(document.querySelectorAll(
    "h1, h2, h3, h4, nav, main p, main ul, .scroll, figcaption, .plot, summary"));
  const view = document.documentElement.clientWidth;
  report({
    width: view,
    scrollWidth: document.documentElement.scrollWidth,
    figures: document.querySelectorAll("script.figure").length,
    plots: Array.from(document.querySelectorAll(".plot"), plotOf),
    cells: Array.from(document.querySelectorAll("[data-value]"), (cell) => ({
      run: cell.dataset.run, key: cell.dataset.key, value: cell.dataset.value,
      text: label(cell), isVisible: isDrawn(cell),
    })),
    wide: blocks.filter((block) => rect(block).right > view + 1).map(label),
    overlapping: overlapping(blocks),
    downloads: Array.from(document.querySelectorAll("a.download"), (link) => link.href),
  });
}

(function wait() {
  const figures = document.querySelectorAll("script.figure").length;
  if (Number(document.documentElement.dataset.drawn) !== figures) setTimeout(wait, 20);
  else setTimeout(look, 50);
})();
