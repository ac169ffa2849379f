// Paints figures with Plotly in the page's own colours, and keeps what the person has zoomed into.
"use strict";

window.charts = (() => {
  const drawn = new Map(); // place -> figure
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  function draw(place, figure) {
    drawn.set(place, figure);
    const empty = figure.traces.length === 0;
    if (empty && !place.classList.contains("js-plotly-plot")) return;
    const waiting = place.querySelector(".empty");
    if (waiting) waiting.remove();
    const first = !place.classList.contains("js-plotly-plot");
    Plotly.react(place, figure.traces.map(paint), layout(place, figure), {
      responsive: true, displaylogo: false, displayModeBar: touch.matches ? false : "hover",
      modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
      toImageButtonOptions: { filename: `hpsearch-${place.dataset.figure}`, scale: 2 },
    });
    if (first && place.dataset.trials) place.on("plotly_click", (event) => open(place, event.points[0]));
  }

  function open(place, point) {
    const number = Number(point.customdata ?? (point.data.mode === "markers" ? point.x : point.data.name));
    if (Number.isInteger(number)) location.href = place.dataset.trials + number;
  }

  function paint(trace) {
    const role = trace.meta.role;
    if (role === "scale") {
      const at = trace.meta.at;
      return { ...trace, line: { color: mix(colour("scale-low"), colour("scale-high"), at), width: 1 + 1.4 * at } };
    }
    const paper = colour(role);
    const strong = !["faint", "plain"].includes(role);
    const painted = { ...trace };
    if (role === "matrix") {
      return { ...trace, colorscale: [[0, colour("raised")], [0.15, mix(colour("raised"), colour("best"), 0.55)], [1, colour("best")]] };
    }
    if (trace.type === "bar") painted.marker = { color: paper };
    else if (trace.mode === "markers") painted.marker = { color: paper, size: role === "faint" ? 5 : strong ? 8 : 6 };
    else {
      painted.line = { ...trace.line, color: paper, width: strong ? 2.2 : role === "plain" ? 1.3 : 1 };
      painted.opacity = role === "plain" ? 0.65 : 1;
      if (trace.x.length === 1) Object.assign(painted, { mode: "markers", marker: { color: paper, size: 7 } });
    }
    return painted;
  }

  function layout(place, figure) {
    const { scales, rows, ...given } = figure.layout;
    const ink = colour("ink"), soft = colour("soft"), rule = colour("rule");
    const axis = {
      gridcolor: rule, linecolor: rule, zerolinecolor: rule, tickfont: { color: soft, size: 12 }, automargin: true,
      exponentformat: "e", minexponent: 5, separatethousands: true,
      title: { font: { color: soft, size: 12 }, standoff: 8 },
    };
    const merged = (one) => ({ ...axis, ...one, title: { ...axis.title, ...(one || {}).title } });
    const base = {
      ...given,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", color: ink, size: 13 },
      margin: { l: 12, r: 12, t: given.showlegend === false ? 12 : 30, b: 12 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 12, color: soft } },
      hoverlabel: { bgcolor: colour("raised"), bordercolor: rule, font: { color: ink, size: 12 } },
      hovermode: "closest",
      dragmode: touch.matches ? false : "zoom",
      xaxis: merged(given.xaxis), yaxis: merged(given.yaxis),
      modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink },
      uirevision: "kept", // what the person has zoomed into, or hidden, stays
      bargap: 0.35,
    };
    if (rows) place.style.height = `${Math.max(10, 5 + 1.7 * rows)}rem`;
    return scales ? { ...base, ...axes(scales, ink, soft, rule) } : base;
  }

  // The upright axes of parallel coordinates, with their labels.
  function axes(scales, ink, soft, rule) {
    const shapes = scales.map((_, x) => ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, line: { color: soft, width: 1 }, layer: "below" }));
    const annotations = scales.flatMap((labels, x) => labels.map(([y, text]) => ({
      x, y, text, showarrow: false, xanchor: "left", xshift: 5, font: { size: 11, color: ink }, bgcolor: colour("paper"), borderpad: 1, opacity: 0.9,
    })));
    return { shapes, annotations };
  }

  function mix(low, high, at) {
    const parse = (text) => [1, 3, 5].map((index) => parseInt(text.slice(index, index + 2), 16));
    const [a, b] = [parse(low), parse(high)];
    return `rgb(${a.map((value, index) => Math.round(value + (b[index] - value) * at)).join(",")})`;
  }

  const again = () => drawn.forEach((figure, place) => draw(place, figure));
  dark.addEventListener("change", again);
  return { draw };
})();
