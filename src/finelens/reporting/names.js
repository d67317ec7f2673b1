"use strict";
// What both review sheets share. Texts enter the page as text, never as markup.

const at = (id) => document.getElementById(id);

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function say(text) {
  at("message").textContent = text;
  at("message").hidden = !text;
}

// Case, accents, hyphens and underscores do not count.
const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase().replace(/[-_\s]+/g, " ").trim();

// A text field over a list of names: what begins with the letters first, then what holds them; arrows move, Enter takes, Escape leaves.
function typeAhead(input, list, names, choose, leave, mayAdd) {
  const most = 8;
  let shown = [], marked = 0;

  function find() {
    const typed = plain(input.value);
    const all = names().map((name) => [name, plain(name)]);
    const begin = all.filter(([, text]) => text.startsWith(typed)), within = all.filter(([, text]) => !text.startsWith(typed) && text.includes(typed));
    shown = typed ? [...begin, ...within].slice(0, most).map(([name]) => ({ name })) : [];
    if (typed && mayAdd && !all.some(([, text]) => text === typed)) shown.push({ name: input.value.trim(), added: true });
    marked = 0;
    draw();
  }

  function draw() {
    list.replaceChildren(...shown.map(({ name, added }, i) => {
      const row = make("li", { id: "option-" + i, role: "option" }, added ? "new: " : "", make("bdi", { textContent: name }));
      row.setAttribute("aria-selected", i === marked);
      row.addEventListener("mousedown", (event) => { event.preventDefault(); take(i); });
      return row;
    }));
    list.hidden = !shown.length;
    input.setAttribute("aria-expanded", Boolean(shown.length));
    if (shown.length) input.setAttribute("aria-activedescendant", "option-" + marked);
    else input.removeAttribute("aria-activedescendant");
  }

  function clear() {
    input.value = "";
    shown = [];
    draw();
  }

  function take(i) {
    if (!shown[i]) return say(input.value.trim() ? "There is no class “" + input.value.trim() + "” in the list." : "Type the name of a class.");
    const { name } = shown[i], typed = input.value;
    clear();
    // What was not taken stays where it was typed, unless more has been typed since.
    Promise.resolve(choose(name)).then((taken) => {
      if (taken !== false || input.value) return;
      input.value = typed;
      find();
    });
  }

  input.addEventListener("input", find);
  input.addEventListener("blur", () => { shown = []; draw(); });
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      marked = Math.max(0, Math.min(shown.length - 1, marked + (event.key === "ArrowDown" ? 1 : -1)));
      draw();
    } else if (event.key === "Enter") take(marked);
    else if (event.key === "Escape") { clear(); leave(); }
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  return clear;
}

// A key is for the page unless it is part of a text, of a shortcut of the browser, or of an open dialog.
const isOurs = (event) => !event.ctrlKey && !event.metaKey && !event.altKey && event.target.tagName !== "INPUT" && !document.querySelector("dialog[open]");

function help() {
  at("help").showModal();
}

at("help-open").addEventListener("click", help);
