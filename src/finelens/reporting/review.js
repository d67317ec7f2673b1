"use strict";
// One photograph at a time. Texts enter the page as text, never as markup.

const { classes, items, id, token, answers } = JSON.parse(document.getElementById("review-data").textContent);
const at = (id) => document.getElementById(id);
const place = new Map(classes.map((name, i) => [name, i]));
const key = "finelens-review:" + id;
// Class name by path; the empty name says "none of the classes".
const given = new Map(Object.entries(answers));
let now = 0, saving = Promise.resolve();

function restore() {
  if (token) return;
  try {
    for (const [path, label] of JSON.parse(localStorage.getItem(key) || "[]")) {
      if (items.some((item) => item.path === path) && (label === "" || place.has(label))) given.set(path, label);
    }
  } catch { /* a browser may keep nothing for files */ }
}

function say(text) {
  at("message").textContent = text;
  at("message").hidden = !text;
}

function keep() {
  if (!token) {
    try { localStorage.setItem(key, JSON.stringify([...given])); } catch { /* as above */ }
    return;
  }
  // One after the other: an older answer must not arrive after a newer one.
  saving = saving.then(send);
}

async function send() {
  try {
    const reply = await fetch("/hints", { method: "POST", body: JSON.stringify({ token, hints: [...given] }) });
    say(reply.ok ? "" : "Not saved: " + await reply.text());
  } catch {
    say("Not saved: the program no longer answers. Start finelens review --serve again; it goes on from what was saved.");
  }
}

function answer(label) {
  given.set(items[now].path, label);
  keep();
  show(now + 1);
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
    const row = document.createElement("li"), button = document.createElement("button"), number = document.createElement("kbd");
    const name = document.createElement("bdi"), share = document.createElement("span");
    button.type = "button";
    number.textContent = i + 1;
    name.textContent = classes[index];
    share.className = "num quiet";
    share.textContent = (permille / 10).toFixed(0) + "%";
    button.append(number, " ", name, " ", share);
    button.setAttribute("aria-pressed", given.get(item.path) === classes[index]);
    button.addEventListener("click", () => answer(classes[index]));
    row.append(button);
    return row;
  }));
  at("name").value = "";
  // The next key is an answer again, not a letter of a name.
  if (document.activeElement === at("name")) at("question").focus();
}

function cell(text) {
  const safe = /^'*[=+\-@\t\r]/.test(text) ? "'" + text : text;
  return /[",\n\r]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
}

function csv() {
  return "path,label\n" + [...given].map(([path, label]) => cell(path) + "," + cell(label) + "\n").join("");
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.download = "hints.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

function another(event) {
  event.preventDefault();
  const name = at("name").value.trim();
  if (place.has(name)) return answer(name);
  say(name ? "There is no class “" + name + "” in the list." : "Type the name of a class.");
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target === at("name")) {
    if (event.key === "Escape" && event.target === at("name")) at("question").focus();
    return;
  }
  const pressed = event.key.toLowerCase(), over = now === items.length;
  // Enter on a button is that button's own.
  if (pressed === "enter" && event.target.tagName === "BUTTON") return;
  if (pressed === "b") show(now - 1);
  else if (pressed === "e" && at("save")) save();
  else if (over) return;
  else if (pressed === "a" || pressed === "enter") answer(classes[items[now].label]);
  else if (pressed === "n") answer("");
  else if (pressed === "s") show(now + 1);
  else if (pressed === "f") at("name").focus();
  else if (/^[1-9]$/.test(pressed) && items[now].top[pressed - 1]) answer(classes[items[now].top[pressed - 1][0]]);
  else return;
  event.preventDefault();
}

restore();
at("names").append(...classes.map((name) => Object.assign(document.createElement("option"), { value: name })));
at("none").addEventListener("click", () => answer(""));
at("skip").addEventListener("click", () => show(now + 1));
at("back").addEventListener("click", () => show(now - 1));
at("other").addEventListener("submit", another);
if (at("save")) at("save").addEventListener("click", save);
addEventListener("keydown", press);
show(items.findIndex((item) => !given.has(item.path)) < 0 ? 0 : items.findIndex((item) => !given.has(item.path)));
