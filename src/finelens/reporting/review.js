// The review without a server: answers stay in the browser until they are saved as a file.

const { classes, items, id, answers, told } = JSON.parse(document.getElementById("review-data").textContent);
const place = new Map(classes.map((name, i) => [name, i]));
const key = "finelens-review:" + id;
// Class name by path; the empty name says "none of the classes".
const given = new Map(Object.entries(answers));
// What was answered on this page, and what was said of it before.
const steps = [];
let now = 0;

function restore() {
  try {
    for (const [path, label] of JSON.parse(localStorage.getItem(key) || "[]")) {
      if (items.some((item) => item.path === path) && (label === "" || place.has(label))) given.set(path, label);
    }
  } catch { /* a browser may keep nothing for files */ }
}

function keep() {
  try { localStorage.setItem(key, JSON.stringify([...given])); } catch { /* a browser may keep nothing for files */ }
}

function answer(label) {
  const { path } = items[now];
  steps.push([now, path, given.get(path)]);
  given.set(path, label);
  keep();
  show(now + 1);
}

function undo() {
  if (!steps.length) return say("There is nothing to take back.");
  const [where, path, before] = steps.pop();
  if (before === undefined) given.delete(path);
  else given.set(path, before);
  keep();
  show(where);
}

function show(to) {
  now = Math.max(0, Math.min(to, items.length));
  const over = now === items.length;
  at("sheet").hidden = over;
  at("done").hidden = !over;
  at("bar").value = now;
  at("where").textContent = over ? "" : "photograph " + (now + 1) + " of " + items.length;
  const told = [...given.values()], none = told.filter((label) => label === "").length;
  at("count").textContent = told.length + (told.length === 1 ? " photograph" : " photographs") + " answered" + (none ? ", " + none + " of them none of the classes" : "");
  say("");
  if (over) return at("finished").focus();
  const item = items[now], names = classes[item.label];
  at("label").textContent = names;
  at("why").textContent = item.why;
  at("path").textContent = item.path;
  at("picture").hidden = !item.picture;
  at("nopicture").hidden = Boolean(item.picture);
  if (item.picture) at("picture").src = item.picture;
  at("picture").alt = item.path + ": " + names + "?";
  at("given").textContent = !given.has(item.path) ? "" : "You said: " + (given.get(item.path) || "none of the classes");
  at("choices").replaceChildren(...item.top.map(([index, permille], i) => {
    const button = make("button", { type: "button" }, make("kbd", { textContent: i + 1 }), make("bdi", { textContent: classes[index] }));
    button.append(make("span", { className: "num quiet", textContent: (permille / 10).toFixed(0) + " %" }));
    button.setAttribute("aria-pressed", given.get(item.path) === classes[index]);
    button.addEventListener("click", () => answer(classes[index]));
    return make("li", {}, button);
  }));
  clearName();
  // The next key is an answer again, not a letter of a name.
  at("question").focus({ preventScroll: true });
}

function cell(text) {
  const safe = /^'*[=+\-@\t\r]/.test(text) ? "'" + text : text;
  return /[",\n\r]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
}

function csv() {
  // Answers of an earlier round keep how they were given.
  const how = [...given.keys()].some((path) => told[path]) ? (path) => told[path] || ["", "", ""] : () => [];
  const head = how("").length ? "path,label,source,by,group\n" : "path,label\n";
  const text = head + [...given].map(([path, label]) => [path, label, ...how(path)].map(cell).join(",") + "\n").join("");
  // Without the mark Excel takes other letters than English ones for others.
  return /^[\x00-\x7f]*$/.test(text) ? text : "\ufeff" + text;
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.download = "hints.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

function press(event) {
  if (!isOurs(event)) return;
  const pressed = event.key.toLowerCase(), over = now === items.length;
  // Enter on a button is that button's own.
  if (pressed === "enter" && event.target.tagName === "BUTTON") return;
  if (pressed === "b") show(now - 1);
  else if (pressed === "e") save();
  else if (pressed === "u") undo();
  else if (pressed === "?") help();
  else if (over) return;
  else if (pressed === "a" || pressed === "enter") answer(classes[items[now].label]);
  else if (pressed === "n") answer("");
  else if (pressed === "s") show(now + 1);
  else if (pressed === "f" || pressed === "/") at("name").focus();
  else if (/^[1-9]$/.test(pressed) && items[now].top[pressed - 1]) answer(classes[items[now].top[pressed - 1][0]]);
  else return;
  event.preventDefault();
}

const clearName = typeAhead(at("name"), at("options"), () => classes, answer, () => at("question").focus(), false);
restore();
at("none").addEventListener("click", () => answer(""));
at("skip").addEventListener("click", () => show(now + 1));
at("back").addEventListener("click", () => show(now - 1));
at("undo").addEventListener("click", undo);
at("save").addEventListener("click", save);
at("typing").addEventListener("submit", (event) => event.preventDefault());
addEventListener("keydown", press);
show(items.findIndex((item) => !given.has(item.path)) < 0 ? 0 : items.findIndex((item) => !given.has(item.path)));
