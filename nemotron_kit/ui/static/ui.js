"use strict";
// Light and dark, refreshing, logs that follow, and handing figures to plotly.js. Texts are only ever set as text.
(() => {
  const root = document.documentElement, body = document.body, COLOURS =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8b5fbf", "#7f8c2e", "#c0392b", "#16a3a3"];
  const all = (selector, under = document) => Array.from(under.querySelectorAll(selector));

  // --- light and dark
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
  function toggle() {
    root.dataset.theme = isDark() ? "light" : "dark";
    if (!("export" in body.dataset)) document.cookie = `theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=strict`;
    drawAll(true);
  }
  document.getElementById("theme").addEventListener("click", toggle);
  system.addEventListener("change", () => drawAll(true));

  // --- charts
  const drawn = new Map(), seen = new WeakSet();
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) if (isIntersecting) { seen.add(target); draw(target); }
  }, { rootMargin: "300px" });

  function styled(figure) {
    const text = colour("--text"), line = colour("--line"), link = colour("--link");
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
    const layout = { ...figure.layout, font: { color: text, size: 12 }, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)", colorway: COLOURS, margin: { l: 56, r: 16, t: 10, b: 40 }, hovermode: "closest",
      hoverlabel: { namelength: 60 }, uirevision: `${figure.key} ${figure.axis}`,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: text },
      legend: { orientation: "h", y: -0.28 }, showlegend: figure.data.length > 1 };
    layout.xaxis = { ...axis, ...figure.layout.xaxis };
    layout.yaxis = { ...axis, ...figure.layout.yaxis };
    let data = figure.data;
    if (figure.kind === "curves" && figure.log) layout.yaxis.type = "log";
    const other = figure.axes[figure.axis];
    if (other) {
      layout.xaxis = { ...layout.xaxis, title: { text: other.title } };
      data = data.map((trace, at) => ({ ...trace, x: other.x[at], showlegend: other.x[at].length > 0 }));
    }
    if (figure.kind === "parallel") {
      layout.margin.r = 90;
      layout.showlegend = false;
      layout.shapes = figure.layout.shapes.map((shape) => ({ ...shape, line: { color: line, width: 1 } }));
      const kept = selected(figure);
      layout.dragmode = "select";
      layout.selections = [];
      layout.selectionrevision = revision++;
      layout.newselection = { line: { color: link, width: 1 } };
      layout.shapes.push(...(figure.brush || []).flatMap((range, at) => !range ? [] : [{ type: "rect", x0: at - 0.02,
        x1: at + 0.02, y0: range[0] - 0.01, y1: range[1] + 0.01, line: { width: 0 }, fillcolor: link, opacity: 0.35 }]));
      data = data.map((trace) => ({ ...trace, selectedpoints: null,
        opacity: !kept.has(trace.meta.job) ? 0.05 : trace.meta.best ? 1 : 0.75 - 0.55 * trace.meta.rank,
        line: trace.meta.best ? { color: "#d55e00", width: 3.5 } : { color: link, width: 1.2 } }));
    }
    if (figure.kind === "lineage") {
      const kinds = { data: "#b8860b", run: colour("--quiet"), artifact: "#0072b2" };
      data = data.map((trace) => ({ ...trace, textfont: { color: text, shadow: "none" },
        node: { ...trace.node, color: trace.node.meta.map((kind) => kinds[kind]), line: { width: 0 } },
        link: { ...trace.link, color: colour("--line") } }));
      layout.margin = { l: 10, r: 10, t: 10, b: 10 };
      delete layout.width;
    }
    return [data, layout];
  }

  function draw(plot) {
    if (!window.Plotly || !seen.has(plot)) return;
    const figure = drawn.get(plot), [data, layout] = styled(figure);
    const buttons = figure.kind === "curves" ? [["zoom2d", "pan2d", "resetScale2d", "toImage"]] : [["toImage"]];
    const bar = figure.kind !== "lineage";
    Plotly.react(plot, data, layout, { responsive: true, displaylogo: false, displayModeBar: bar, modeBarButtons: buttons }).then(() => {
      plot.dataset.ready = figure.kind;
      if (figure.kind === "curves" || plot.dataset.clicks) return;
      plot.dataset.clicks = "1";
      if (figure.kind === "parallel") {
        plot.on("plotly_selected", (event) => { if (event?.range?.x) drag(plot, event.range); });
        plot.on("plotly_deselect", () => brush(plot, []));
        return;
      }
      plot.on("plotly_click", (event) => {
        const point = event.points[0];
        if (point.source !== undefined) return; // an edge
        const [url] = drawn.get(plot).data[0].node.customdata[point.pointNumber];
        if (typeof url === "string" && /^[/#][^/\\]/.test(url)) location.assign(url);
      });
    });
  }

  // --- ranges of the parallel coordinates: by dragging over an axis, or by sliders; the sweep's table has what is in all
  let revision = 0;
  const EVERY = [0, 1], NEAR = 1e-6;

  function selected(figure) {
    const within = (range, y) => !range || (y >= range[0] - NEAR && y <= range[1] + NEAR);
    const kept = figure.data.filter((trace) => trace.y.every((y, at) => within(figure.brush?.[at], y)));
    return new Set(kept.map((trace) => trace.meta.job));
  }
  function shown({ texts, low, spread, log }, [from, to]) {
    if (texts) {
      const place = (at) => at / Math.max(1, texts.length - 1);
      const inside = texts.filter((_, at) => place(at) >= from - NEAR && place(at) <= to + NEAR);
      return inside.length > 3 ? `${inside[0]} … ${inside.at(-1)}` : inside.join(", ") || "none";
    }
    const value = (y) => low + y * spread;
    return [from, to].map((y) => Number((log ? Math.exp(value(y)) : value(y)).toPrecision(4))).join(" … ");
  }
  function brush(plot, ranges) {
    drawn.get(plot).brush = ranges;
    draw(plot);
    filter(plot);
  }
  function drag(plot, { x, y }) {
    const figure = drawn.get(plot), ranges = [...(figure.brush || [])];
    const axes = figure.layout.meta.axes.map((_, at) => at), [left, right] = [Math.min(...x), Math.max(...x)];
    const range = [Math.max(0, Math.min(...y)), Math.min(1, Math.max(...y))];
    const inside = axes.filter((at) => at >= left && at <= right);
    const middle = (left + right) / 2, nearest = Math.min(axes.length - 1, Math.max(0, Math.round(middle)));
    for (const at of inside.length ? inside : [nearest]) ranges[at] = range;
    brush(plot, ranges);
  }
  function filter(plot) {
    const figure = drawn.get(plot), ranges = figure.brush || [], kept = selected(figure), on = ranges.some(Boolean);
    const anchor = plot.closest("[data-charts]").dataset.charts;
    for (const row of all(`[data-live="rows-${CSS.escape(anchor)}"] tr[data-job]`)) {
      row.hidden = on && !kept.has(Number(row.dataset.job));
      for (const box of all("input", row)) box.disabled = row.hidden; // what is not to be seen is not compared
    }
    const box = plot.parentElement.querySelector(".ranges");
    figure.layout.meta.axes.forEach((axis, at) => {
      const range = ranges[at] || EVERY, text = shown(axis, range);
      all(`input[data-axis="${at}"]`, box).forEach((input, end) => {
        input.value = range[end];
        input.setAttribute("aria-valuetext", text);
      });
      box.querySelector(`output[data-axis="${at}"]`).textContent = text;
    });
    box.querySelector("[role=status]").textContent =
      on ? `${kept.size} of ${figure.data.length} jobs are in these ranges; the table shows them.` : "";
    box.querySelector("button").hidden = !on;
  }
  function sliders(plot, figure) {
    const box = document.createElement("div"), details = document.createElement("details");
    const summary = document.createElement("summary"), state = document.createElement("p"), clear = document.createElement("button");
    box.className = "ranges";
    summary.textContent = "Select ranges (or drag over an axis)";
    details.append(summary);
    figure.layout.meta.axes.forEach((axis, at) => {
      const set = document.createElement("fieldset"), name = document.createElement("legend");
      const output = document.createElement("output");
      name.textContent = axis.name;
      output.dataset.axis = at;
      set.append(name);
      for (const [end, what] of ["from", "to"].entries()) {
        const input = document.createElement("input");
        Object.assign(input, { type: "range", min: 0, max: 1, step: 0.01, value: end });
        input.dataset.axis = at;
        input.setAttribute("aria-label", `${axis.name} ${what}`);
        input.addEventListener("input", () => {
          const ranges = [...(drawn.get(plot).brush || [])], range = [...(ranges[at] || EVERY)];
          range[end] = Number(input.value);
          range[1 - end] = end ? Math.min(range[0], range[1]) : Math.max(range[0], range[1]);
          ranges[at] = range[0] <= 0 && range[1] >= 1 ? null : range;
          brush(plot, ranges);
        });
        set.append(input);
      }
      set.append(output);
      details.append(set);
    });
    state.setAttribute("role", "status");
    clear.type = "button";
    clear.textContent = "All jobs";
    clear.addEventListener("click", () => brush(plot, []));
    box.append(state, clear, details);
    plot.after(box);
    filter(plot);
  }

  // --- the horizontal axis of all curves of a page
  function axes(into) {
    const plots = all(".plot", into).filter((plot) => drawn.get(plot).kind === "curves");
    const names = new Set(plots.flatMap((plot) => Object.keys(drawn.get(plot).axes)));
    let select = into.querySelector(".axis select");
    if (!select && names.size) {
      const text = document.createElement("label");
      text.className = "axis";
      text.textContent = "Curves by ";
      select = document.createElement("select");
      select.add(new Option("step"));
      select.addEventListener("change", () => axes(into));
      text.append(select);
      plots[0].closest("figure").before(text);
    }
    for (const name of names) if (![...select.options].some((option) => option.value === name)) select.add(new Option(name));
    for (const plot of plots) {
      const figure = drawn.get(plot);
      if (select && figure.axis !== select.value) { figure.axis = select.value; draw(plot); }
    }
  }

  function figures(holder) {
    const into = document.querySelector(`[data-charts="${CSS.escape(holder.dataset.figures)}"]`);
    for (const script of all("script", holder)) {
      const figure = JSON.parse(script.textContent);
      let plot = all(".plot", into).find((each) => each.dataset.key === figure.key);
      if (!plot) {
        const box = document.createElement("figure"), caption = document.createElement("figcaption");
        const title = document.createElement("bdi");
        title.textContent = figure.title;
        caption.append(title);
        plot = document.createElement("div");
        plot.className = "plot";
        plot.dataset.key = figure.key;
        plot.setAttribute("role", "img");
        plot.setAttribute("aria-label", figure.title);
        if (figure.kind === "curves") {
          const button = document.createElement("button");
          button.type = "button";
          button.textContent = "log";
          button.title = "Logarithmic values";
          button.setAttribute("aria-pressed", "false");
          button.addEventListener("click", () => {
            const now = drawn.get(plot);
            now.log = !now.log;
            button.setAttribute("aria-pressed", String(now.log));
            draw(plot);
          });
          caption.append(button);
        } else box.className = "broad";
        box.append(caption, plot);
        into.append(box);
        if (figure.layout.height) plot.style.height = `${figure.layout.height}px`;
        if (figure.kind === "curves" && figure.data.length > 4) plot.classList.add("tall");
        if (figure.layout.width) plot.style.minWidth = `${figure.layout.width}px`;
        drawn.set(plot, figure);
        watcher.observe(plot);
        if (figure.kind === "parallel") sliders(plot, figure);
      } else {
        const { log, axis, brush: ranges, layout } = drawn.get(plot);
        // Places on other axes: with other values or bounds, a range would be another one.
        const same = JSON.stringify(layout.meta) === JSON.stringify(figure.layout.meta);
        Object.assign(figure, { log, axis, brush: same ? ranges : [] });
        drawn.set(plot, figure);
        draw(plot);
        if (figure.kind === "parallel") {
          if (!same) plot.parentElement.querySelector(".ranges").remove();
          if (same) filter(plot);
          else sliders(plot, figure);
        }
      }
    }
    axes(into);
  }
  function drawAll(again) {
    if (again) for (const plot of drawn.keys()) draw(plot);
    else all("[data-figures]").forEach(figures);
  }
  drawAll(false);

  // --- refreshing: parts of the page that have changed are replaced; what is chosen and focused stays so
  const connection = document.getElementById("connection");
  let tag = null;
  // The first metric brings the charts and their library, a rank that starts brings a log: these need the whole page.
  const whole = (page) => all("[data-figures], [data-log]", page).map((part) => part.dataset.figures || part.dataset.log).join();
  const named = (element) => element.id ? `#${CSS.escape(element.id)}`
    : element.href ? `a[href="${CSS.escape(element.getAttribute("href"))}"]` : "";
  async function refresh() {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.href, { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
      connection.textContent = answer.ok || answer.status === 304 ? "" : `The page can't be read again: ${answer.status}`;
      if (!answer.ok) return;
      tag = answer.headers.get("ETag");
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (whole(fresh) !== whole(document)) { location.reload(); return; }
      for (const part of all("[data-live]")) {
        const now = fresh.querySelector(`[data-live="${CSS.escape(part.dataset.live)}"]`);
        if (!now || now.innerHTML === part.innerHTML) continue;
        const chosen = new Set(all("input:checked", part).map((box) => box.value));
        const focus = part.contains(document.activeElement) ? named(document.activeElement) : "";
        part.replaceChildren(...now.childNodes);
        for (const box of all("input[type=checkbox]", part)) box.checked = chosen.has(box.value);
        if (focus) part.querySelector(focus)?.focus();
        if (part.dataset.figures) figures(part);
      }
      for (const [plot, figure] of drawn) if (figure.kind === "parallel") filter(plot);
      if (!("refresh" in fresh.body.dataset)) clearInterval(timer);
    } catch (error) {
      connection.textContent = "nemotron ui has ended, or the tunnel is closed.";
    }
  }
  const timer = body.dataset.refresh ? setInterval(refresh, 1000 * body.dataset.refresh) : 0;

  // --- logs
  const KEPT = 2000000;
  async function follow(pre) {
    let next = "", node = document.createTextNode("");
    pre.replaceChildren(node);
    for (;;) {
      const details = pre.closest("details");
      if (!details.open) await new Promise((done) => details.addEventListener("toggle", done, { once: true }));
      let part;
      try {
        const answer = await fetch(`${pre.dataset.log}?from=${next}`, { cache: "no-store" });
        if (!answer.ok) throw new Error(answer.status);
        part = await answer.json();
      } catch (error) {
        await new Promise((done) => setTimeout(done, 5000));
        continue;
      }
      next = part.next;
      if (part.text) {
        const atEnd = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 40;
        node.appendData(part.text);
        if (node.length > KEPT) node.deleteData(0, node.length - KEPT);
        if (atEnd) pre.scrollTop = pre.scrollHeight;
      }
      if (part.over && !part.more) { pre.dataset.over = "1"; return; }
      await new Promise((done) => setTimeout(done, part.more ? 50 : 1500));
    }
  }
  all("[data-log]").forEach(follow);

  // --- keys
  let before = "";
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const pages = { r: "/", a: "/artifacts", l: "/lineage" };
    if (before === "g" && pages[event.key] && !("export" in body.dataset)) location.assign(pages[event.key]);
    else if (event.key === "t") toggle();
    else if (event.key === "/" && document.getElementById("filter")) {
      event.preventDefault();
      document.getElementById("filter").focus();
    }
    before = event.key;
  });
})();
