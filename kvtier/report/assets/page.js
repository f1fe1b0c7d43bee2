"use strict";
const results = JSON.parse(document.getElementById("results").textContent);

for (const link of document.querySelectorAll("a.download")) {
  const text = JSON.stringify(results[Number(link.dataset.run)], null, 2) + "\n";
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
}

/* Plots take their text and lines from the page, so that they follow its colour scheme. */
function theme() {
  const style = getComputedStyle(document.documentElement);
  const line = style.getPropertyValue("--line").trim();
  return {
    "font.color": style.getPropertyValue("--text").trim(),
    "font.family": getComputedStyle(document.body).fontFamily,
    "xaxis.gridcolor": line,
    "xaxis.zerolinecolor": line,
    "yaxis.gridcolor": line,
    "yaxis.zerolinecolor": line,
  };
}

function dressed(layout) {
  for (const [key, value] of Object.entries(theme())) {
    const [part, name] = key.split(".");
    layout[part] = { ...layout[part], [name]: value };
  }
  return layout;
}

const drawn = Array.from(document.querySelectorAll("script.figure"), (script) => {
  const figure = JSON.parse(script.textContent);
  const place = document.getElementById(script.dataset.plot);
  const config = { displaylogo: false, displayModeBar: false, responsive: true };
  return Plotly.newPlot(place, figure.data, dressed(figure.layout), config);
});

Promise.all(drawn).then((places) => {
  document.documentElement.dataset.drawn = places.length;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const place of places) Plotly.relayout(place, theme());
  });
});
