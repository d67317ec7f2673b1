
function photoMap() {
  const source = document.getElementById("map-data");
  if (!source) return;
  const { xy, pictures } = JSON.parse(source.textContent), table = JSON.parse(document.getElementById("table-data").textContent);
  const rows = table.rows.filter((row) => row[1] >= 0), names = table.classes, n = rows.length;
  const canvas = document.getElementById("map-canvas"), board = canvas.getContext("2d"), tip = document.getElementById("map-tip");
  // All but the mark of the chosen photograph is drawn once for each view: a pointer that goes over the map moves the mark alone.
  const dots = document.createElement("canvas"), pen = dots.getContext("2d");
  const picture = document.createElement("img"), text = document.getElementById("map-text"), said = document.getElementById("map-said");
  const colour = document.getElementById("map-colour"), only = document.getElementById("map-class"), legend = document.getElementById("map-legend");
  picture.alt = "";
  picture.width = picture.height = 64;
  tip.prepend(picture);
  const counts = names.map(() => 0);
  for (const row of rows) counts[row[1]] += 1;
  const ranked = names.map((_, c) => c).filter((c) => counts[c]).sort((a, b) => counts[b] - counts[a]);
  const rank = new Map(ranked.map((c, i) => [c, i]));
  // Cells of a grid, so that the photograph under the pointer is found among few.
  const SIDE = 64, cells = Array.from({ length: SIDE * SIDE }, () => []);
  for (let i = 0; i < n; i += 1) cells[Math.min(SIDE - 1, xy[2 * i + 1] * SIDE / 1001 | 0) * SIDE + Math.min(SIDE - 1, xy[2 * i] * SIDE / 1001 | 0)].push(i);
  let scale = 1, left = 0, top = 0, chosen = -1, waiting = false, stale = true, size = 1;
  const dark = matchMedia("screen and (prefers-color-scheme: dark)");

  function tone(i) {
    const [, label, probability, , first] = rows[i];
    if (colour.value === "doubt") return probability >= 800 ? 0 : probability >= 500 ? 1 : 2;
    if (colour.value === "change") return first >= 0 && first !== label ? 1 : 0;
    return rank.get(label);
  }
  function paint(k) {
    const light = dark.matches ? 66 : 42;
    if (colour.value === "doubt") return ["#7c8794", "#b57e16", "#d0342c"][k];
    if (colour.value === "change") return ["#7c8794", dark.matches ? "#7fb0ff" : "#1f5fbf"][k];
    return "hsl(" + (k * 137.508 + 210) % 360 + " " + (k % 2 ? 50 : 68) + "% " + (light + (k % 3) * 6) + "%)";
  }
  const px = (i) => (xy[2 * i] / 1000 * scale + left) * size, py = (i) => (xy[2 * i + 1] / 1000 * scale + top) * size;

  function draw() {
    waiting = false;
    const ratio = devicePixelRatio || 1, wide = canvas.clientWidth, high = canvas.clientHeight;
    const side = Math.max(2, Math.min(9, (n > 5000 ? 2.5 : n > 800 ? 4 : 6) * Math.sqrt(scale)));
    size = wide;
    if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) {
      dots.width = canvas.width = Math.round(wide * ratio);
      dots.height = canvas.height = Math.round(high * ratio);
      stale = true;
    }
    if (stale) plot(ratio, wide, high, side);
    stale = false;
    board.setTransform(1, 0, 0, 1, 0, 0);
    board.clearRect(0, 0, canvas.width, canvas.height);
    if (dots.width && dots.height) board.drawImage(dots, 0, 0);
    if (chosen >= 0) {
      board.setTransform(ratio, 0, 0, ratio, 0, 0);
      board.strokeStyle = dark.matches ? "#fff" : "#000";
      board.lineWidth = 2;
      board.strokeRect(px(chosen) - side, py(chosen) - side, 2 * side, 2 * side);
    }
  }
  function plot(ratio, wide, high, side) {
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, wide, high);
    const wanted = Number(only.value), groups = new Map();
    for (let i = 0; i < n; i += 1) {
      const x = px(i), y = py(i);
      if (x < -9 || y < -9 || x > wide + 9 || y > high + 9) continue;
      const k = wanted >= 0 && rows[i][1] !== wanted ? -1 : tone(i);
      if (!groups.has(k)) groups.set(k, []);
      groups.get(k).push(x - side / 2, y - side / 2);
    }
    for (const k of [...groups.keys()].sort((a, b) => (a < 0 ? -1 : b < 0 ? 1 : a - b))) {
      pen.globalAlpha = k < 0 ? 0.16 : n > 5000 ? 0.75 : 0.9;
      pen.fillStyle = k < 0 ? "#888" : paint(k);
      const points = groups.get(k);
      for (let j = 0; j < points.length; j += 2) pen.fillRect(points[j], points[j + 1], side, side);
    }
    pen.globalAlpha = 1;
    if (colour.value === "class") labels(wide, high, wanted);
  }
  const middles = ranked.slice(0, 14).map((c) => {
    const own = rows.map((_, i) => i).filter((i) => rows[i][1] === c), half = own.length >> 1;
    const mid = (d) => own.map((i) => xy[2 * i + d]).sort((a, b) => a - b)[half];
    return [c, mid(0), mid(1)];
  });
  function labels(wide, high, wanted) {
    const taken = [];
    pen.font = "600 12px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.lineWidth = 4;
    pen.strokeStyle = dark.matches ? "#14171b" : "#fbfbfa";
    pen.fillStyle = dark.matches ? "#e6e9ed" : "#1b1f24";
    for (const [c, mx, my] of middles) {
      if (wanted >= 0 && c !== wanted) continue;
      const name = names[c].length > 22 ? names[c].slice(0, 21) + "\u2026" : names[c], half = pen.measureText(name).width / 2;
      const place = (mx / 1000 * scale + left) * size, x = Math.min(Math.max(place, half + 4), wide - half - 4), y = (my / 1000 * scale + top) * size;
      if (place < 0 || place > wide || y < 8 || y > high - 4 || taken.some((one) => Math.abs(one[0] - x) < one[2] + half && Math.abs(one[1] - y) < 16)) continue;
      taken.push([x, y, half]);
      pen.strokeText(name, x, y);
      pen.fillText(name, x, y);
    }
  }
  function later(moved) {
    if (moved) stale = true;
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  }
  function told(i) {
    const [path, label, probability, , first] = rows[i];
    return path + ": " + names[label] + ", " + Math.round(probability / 10) + " %" + (first >= 0 && first !== label ? "; before " + names[first] : "");
  }
  function choose(i, aloud) {
    chosen = i;
    tip.hidden = i < 0;
    if (i >= 0) {
      picture.hidden = !pictures[i];
      if (pictures[i]) picture.src = pictures[i];
      text.textContent = told(i);
      tip.style.left = Math.max(0, Math.min(px(i) + 12, canvas.clientWidth - 210)) + "px";
      tip.style.top = Math.max(0, Math.min(py(i) + 12, canvas.clientHeight - 90)) + "px";
      if (aloud) said.textContent = told(i);
    }
    later();
  }
  function near(x, y) {
    const mx = (x / size - left) / scale * 1000, my = (y / size - top) / scale * 1000, reach = 14 / size / scale * 1000;
    const at = (value) => Math.max(0, Math.min(SIDE - 1, value * SIDE / 1001 | 0));
    let best = -1, least = reach * reach;
    for (let cy = at(my - reach); cy <= at(my + reach); cy += 1) for (let cx = at(mx - reach); cx <= at(mx + reach); cx += 1) {
      for (const i of cells[cy * SIDE + cx]) {
        const d = (xy[2 * i] - mx) ** 2 + (xy[2 * i + 1] - my) ** 2;
        if (d < least && (Number(only.value) < 0 || rows[i][1] === Number(only.value))) [best, least] = [i, d];
      }
    }
    return best;
  }
  function zoom(by, x, y) {
    const next = Math.max(1, Math.min(60, scale * by)), ux = x / size, uy = y / size;
    left = ux - (ux - left) * next / scale;
    top = uy - (uy - top) * next / scale;
    scale = next;
    if (scale === 1) left = top = 0;
    stale = true;
    choose(-1);
  }
  const middle = () => [canvas.clientWidth / 2, canvas.clientHeight / 2];
  const fingers = new Map();
  let apart = 0;
  canvas.addEventListener("pointerdown", (event) => { fingers.set(event.pointerId, event); canvas.setPointerCapture(event.pointerId); apart = 0; });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => fingers.delete(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) { choose(near(event.offsetX, event.offsetY)); return; }
    fingers.set(event.pointerId, event);
    if (fingers.size === 2) {
      const [a, b] = [...fingers.values()], now = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
      if (apart) zoom(now / apart, (a.offsetX + b.offsetX) / 2, (a.offsetY + b.offsetY) / 2);
      apart = now;
    } else if (scale > 1) {
      left += (event.clientX - before.clientX) / size;
      top += (event.clientY - before.clientY) / size;
      later(true);
    }
  });
  canvas.addEventListener("click", (event) => choose(near(event.offsetX, event.offsetY), true));
  canvas.addEventListener("pointerleave", () => { if (document.activeElement !== canvas) choose(-1); });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 300), event.offsetX, event.offsetY);
  }, { passive: false });
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "+" || event.key === "=") zoom(1.5, ...middle());
    else if (event.key === "-") zoom(1 / 1.5, ...middle());
    else if (event.key === "0") zoom(0, ...middle());
    else if (ways[event.key]) {
      const [wx, wy] = ways[event.key];
      let best = -1, least = Infinity;
      for (let i = 0; i < n; i += 1) {
        if (Number(only.value) >= 0 && rows[i][1] !== Number(only.value)) continue;
        const dx = chosen < 0 ? xy[2 * i] - 500 : xy[2 * i] - xy[2 * chosen], dy = chosen < 0 ? xy[2 * i + 1] - 500 : xy[2 * i + 1] - xy[2 * chosen + 1];
        const along = dx * wx + dy * wy, across = Math.abs(dx * wy) + Math.abs(dy * wx);
        if (i !== chosen && (chosen < 0 || along > 0) && along + 2 * across < least) [best, least] = [i, chosen < 0 ? Math.hypot(dx, dy) : along + 2 * across];
      }
      if (best >= 0) choose(best, true);
    } else return;
    event.preventDefault();
  });
  document.getElementById("map-in").addEventListener("click", () => zoom(1.6, ...middle()));
  document.getElementById("map-out").addEventListener("click", () => zoom(1 / 1.6, ...middle()));
  document.getElementById("map-reset").addEventListener("click", () => zoom(0, ...middle()));

  function key(k, what) {
    const one = document.createElement("span"), dot = document.createElement("i"), name = document.createElement("bdi");
    dot.style.background = paint(k);
    name.textContent = what;
    one.append(dot, name);
    return one;
  }
  function describe() {
    const kinds = { doubt: ["sure (80 % and more)", "half sure", "unsure (below 50 %)"], change: ["same class as before adapting", "another class than before"] }[colour.value];
    const shown = kinds ? kinds.map((what, k) => key(k, what)) : ranked.slice(0, 12).map((c, k) => key(k, names[c] + " " + counts[c]));
    legend.replaceChildren(...shown, ...(kinds || ranked.length <= 12 ? [] : [document.createTextNode("and " + (ranked.length - 12) + " more; Show picks one")]));
    later(true);
  }
  for (const c of ranked) {
    const option = document.createElement("option");
    option.value = c;
    option.textContent = names[c] + " (" + counts[c] + ")";
    only.append(option);
  }
  colour.addEventListener("input", describe);
  only.addEventListener("input", () => { stale = true; choose(-1); });
  dark.addEventListener("change", describe);
  addEventListener("resize", later);
  document.getElementById("map-place").hidden = false;
  describe();

  const sheets = document.getElementById("sheets"), place = document.getElementById("sheet-place");
  function lay() {
    if (place.childElementCount) return;
    for (const c of ranked) {
      const own = rows.map((_, i) => i).filter((i) => rows[i][1] === c && pictures[i]).sort((a, b) => rows[b][2] - rows[a][2]);
      if (!own.length) continue;
      const head = document.createElement("h3"), box = document.createElement("div");
      head.textContent = names[c] + " (" + counts[c] + (own.length < counts[c] ? ", " + own.length + " shown" : "") + "), surest first";
      box.className = "sheet";
      for (const i of own) {
        const image = document.createElement("img");
        image.src = pictures[i];
        image.alt = image.title = told(i);
        image.width = image.height = 64;
        box.append(image);
      }
      place.append(head, box);
    }
  }
  sheets.addEventListener("toggle", lay);
  addEventListener("beforeprint", lay);
}
photoMap();
