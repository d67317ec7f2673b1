// The review with a server: each answer is sent at once, and the server says what is worth most next.

const { classes, token } = JSON.parse(document.getElementById("review-data").textContent);
const LETTERS = "abcdefghijkl";
let look = null, state = null, odd = new Set(), sending = false;

function kept(store, key, value) {
  try {
    if (value !== undefined) store().setItem(key, value);
    return store().getItem(key) || "";
  } catch { return value || ""; }
}

// A reloaded page is the same page: it gets the same look back.
const tab = kept(() => sessionStorage, "finelens-tab") || kept(() => sessionStorage, "finelens-tab", crypto.randomUUID());
const who = () => at("who").value.trim();
const names = () => [...classes, ...(state ? state.new : [])];

async function call(verb, body) {
  let reply;
  try {
    reply = await fetch(verb, { method: "POST", body: JSON.stringify({ token, tab, who: who(), ...body }) });
  } catch {
    throw new Error("Not saved: the program no longer answers. Start finelens review again and open its new address; it goes on from the last answer that was saved.");
  }
  if (!reply.ok) throw new Error("Not saved: " + await reply.text());
  return reply.json();
}

// One step at a time; what is pressed before the next look is there belongs to no look.
async function step(verb, body, said) {
  if (sending) return false;
  sending = true;
  try {
    const found = await call(verb, body);
    say("");
    tell(found.state);
    show(found.look);
    // What was taken out of a group is out again when the answer is taken back.
    for (const path of found.odd || []) if (look) toggle(look.photos.findIndex((photo) => photo.path === path));
    at("given").textContent = verb === "/undo" && !found.undone ? "There is nothing of yours to take back." : said || "";
    return true;
  } catch (error) {
    say(error.message);
    return false;
  } finally {
    sending = false;
  }
}

function answer(label) {
  if (!look) return false;
  const count = look.photos.length - odd.size;
  return step("/answer", { question: look.id, label, odd: [...odd] }, "Saved: " + (label || "none of these") + (look.photos.length > 1 ? " for " + count + " photographs" : "") + ". U takes it back.");
}

const skip = () => look && step("/skip", { question: look.id }, "Skipped. U takes it back.");
const undo = () => step("/undo", {}, "Taken back.");
const more = () => step("/more", { more: 10 });

// Without a class list: no accuracy is told without what it leaves out.
const others = () => state.unnamed ? ", of named classes; about " + percent(state.unnamed) + " are probably of others" : "";

function ending() {
  if (state.more && state.looks >= state.goal) return "That was the last one";
  return state.open ? "The last looks are open in other pages; a page that was closed gives its look back within a minute" : "There is nothing left to ask";
}

function show(next) {
  const before = !at("done").hidden;
  look = next;
  odd = new Set();
  const over = !look && !state.busy;
  at("sheet").hidden = !look;
  at("waiting").hidden = Boolean(look) || over;
  at("done").hidden = !over;
  at("back").hidden = over;
  clearName();
  // Who waits for a look of others keeps the focus where it is.
  if (over) return before || at("finished").focus();
  if (!look) return;
  const group = look.photos.length > 1, first = look.photos[0];
  at("question").textContent = group ? "What are these " + look.photos.length + "?" : "What is this?";
  at("why").textContent = !group ? look.why : (look.middle === null ? "" : "The marked photograph is asked about; the others are like it. ") + "Take out the odd ones by click or letter, then name the rest.";
  at("one").hidden = group;
  at("group").hidden = !group;
  if (group) at("group").replaceChildren(...look.photos.map(member));
  else {
    at("picture").hidden = !first.picture;
    at("nopicture").hidden = Boolean(first.picture);
    if (first.picture) at("picture").src = first.picture;
    at("picture").alt = first.path;
    at("path").textContent = first.path;
  }
  at("earlier").textContent = look.said.map(([name, label]) => (name || "somebody") + " said: " + (label || "none of these")).join("; ");
  at("choices").replaceChildren(...look.choices.map(([name], i) => choice(name, i + 1)));
  lean();
  at("choices").hidden = !look.choices.length;
  at("none").hidden = !names().length;
  if (!look.choices.length && !group) at("name").focus();
  else at("question").focus({ preventScroll: true });
}

// No number: how the model leans now is not the probability that a run writes, which is calibrated.
function choice(name, key) {
  const button = make("button", { type: "button" }, make("kbd", { textContent: key }), make("bdi", { textContent: name }), make("kbd", { className: "enter", textContent: "Enter" }), make("span", { className: "lean" }));
  button.addEventListener("click", () => answer(name));
  return make("li", {}, button);
}

const likely = ([, p]) => mean(look.photos.map((photo, i) => (odd.has(photo.path) ? null : p[i])).filter((own) => own !== null));
const mean = (numbers) => numbers.reduce((sum, own) => sum + own, 0) / numbers.length;

// What Enter accepts: the likeliest for the photographs that are left.
function suggested() {
  const all = [...look.choices, ...look.further], values = all.map(likely);
  return all[values.indexOf(Math.max(...values))][0];
}

// The order stays while photographs are taken out: a key must not change its class under a finger. A suggestion that has no key comes last.
function lean() {
  if (!look.choices.length) return;
  const list = at("choices"), best = suggested();
  [...list.children].slice(look.choices.length).forEach((extra) => extra.remove());
  const shown = [...look.choices, ...look.further.filter(([name]) => name === best)];
  if (shown.length > look.choices.length) list.append(choice(best, ""));
  shown.forEach((one, place) => {
    list.children[place].classList.toggle("suggested", one[0] === best);
    list.children[place].querySelector(".lean").style.width = 100 * likely(one) + "%";
  });
}

function member({ path, picture }, i) {
  const button = make("button", { type: "button", className: i === look.middle ? "member central" : "member" });
  if (picture) button.append(make("img", { src: picture, alt: path }));
  else button.append(make("span", { className: "nopicture", textContent: "not where it was" }));
  button.append(make("kbd", { textContent: LETTERS[i].toUpperCase() }), make("span", { className: "cross", textContent: "out" }));
  if (i === look.middle) button.append(make("span", { className: "middle", textContent: "asked" }));
  button.title = path;
  button.setAttribute("aria-pressed", false);
  button.setAttribute("aria-label", "take out " + path + (i === look.middle ? ", which is asked about" : ""));
  button.addEventListener("click", () => toggle(i));
  return button;
}

function toggle(i) {
  const { path } = look.photos[i], out = !odd.has(path);
  if (out && odd.size === look.photos.length - 1) return say("One has to stay. Press S to skip the group.");
  if (out) odd.add(path);
  else odd.delete(path);
  say("");
  at("group").children[i].setAttribute("aria-pressed", out);
  const left = look.photos.length - odd.size;
  at("question").textContent = left === 1 ? "What is the one that is left?" : "What are these " + left + "?";
  lean();
}

async function enlarge() {
  if (!look) return;
  const { photos, id } = look;
  try {
    const { pictures } = await call("/large", { question: id });
    at("large").replaceChildren(...photos.map(({ path }, i) => {
      const shown = pictures[i] ? make("img", { src: pictures[i], alt: path }) : make("div", { className: "nopicture", textContent: "not where it was" });
      return make("figure", {}, shown, make("figcaption", {}, photos.length > 1 ? make("kbd", { textContent: LETTERS[i].toUpperCase() }) : "", " ", make("bdi", { textContent: path })));
    }));
    at("enlarged").showModal();
  } catch (error) {
    say(error.message.replace("Not saved: ", ""));
  }
}

const percent = (share) => Math.round(100 * share) + " %";
const count = (n, one, many) => n + " " + (n === 1 ? one : many);

const wanted = (n) => (n > state.remaining ? "too few looks tell of it" : count(n, "more answer tells", "more answers tell"));

function learning() {
  if (state.error) return "could not be taught: " + state.error;
  if (state.busy) return "is learning the last answers";
  return state.answered ? "has learnt all answers" : "waits for the first answer";
}

function tell(next) {
  if (state && next.acts < state.acts) return;
  state = next;
  at("bar").max = state.goal;
  at("bar").value = Math.min(state.looks, state.goal);
  at("where").textContent = state.looks < state.goal ? "look " + (state.looks + 1) + (state.certain ? " of " : " of up to ") + state.goal : count(state.looks, "look", "looks");
  const found = state.progress, told = found && found.estimate !== undefined;
  at("accuracy").textContent = told ? percent(found.estimate) : "not known yet";
  at("interval").textContent = told ? percent(found.low) + " to " + percent(found.high) + ", from " + count(found.tested, "answer", "answers") + others() : found && found.only_ones ? "of " + count(found.only_ones, "answer no other is of its class", "answers no other is of their class") + ": more tell" : found ? wanted(found.wanted) : "the first answers tell";
  at("answered").textContent = state.answered;
  at("answered-note").textContent = state.none ? state.none + " of them none of the classes" : "";
  at("lacking").textContent = names().length ? names().length - state.lacking + " of " + names().length : "none yet";
  at("missing").textContent = state.lacking ? "No example yet: " + state.missing.join(", ") + (state.lacking > state.missing.length ? ", …" : "") : "";
  at("advice").textContent = advice(found);
  at("advice").classList.toggle("good", Boolean(found && found.stop));
  at("learning").textContent = learning();
  at("learning").dataset.settled = !state.busy;
  const people = Object.entries(state.people);
  at("people").textContent = people.length > 1 ? people.map(([name, n]) => (name || "somebody") + " " + n).join(", ") : "";
  at("disagree").hidden = !state.contradictions.length;
  at("contradictions").replaceChildren(...state.contradictions.map(contradiction));
  at("summary").textContent = count(state.looks, "look", "looks") + ", " + count(state.answered, "photograph", "photographs") + " answered" + (told ? "; the model is about " + percent(found.estimate) + " right (" + percent(found.low) + " to " + percent(found.high) + ")" + others() : "") + ".";
  at("finished").textContent = ending();
  at("more").hidden = !state.more;
  at("more-looks").textContent = state.more === 1 ? "one more look" : "up to " + state.more + " more looks";
}

function advice(found) {
  if (!found || found.gain === null || state.remaining < 10) return "";
  const gain = (100 * found.gain).toFixed(1) + " points";
  return found.stop ? "You can stop: ten more looks are expected to gain " + gain + "." : "Go on: ten more looks are expected to gain " + gain + ".";
}

function contradiction({ path, said }) {
  const again = make("button", { type: "button", textContent: "look again" });
  again.addEventListener("click", () => step("/again", { path }));
  const words = said.map(([name, label]) => (name || "somebody") + ": " + (label || "none of these")).join("; ");
  return make("li", {}, make("bdi", { className: "path", textContent: path }), " – " + words + " ", again);
}

function press(event) {
  if (!isOurs(event)) return;
  const pressed = event.key.toLowerCase(), on = event.target.tagName;
  // Enter and space on a button are that button's own.
  if ((pressed === "enter" || pressed === " ") && on !== "BODY" && on !== "H2") return;
  const place = look && look.photos.length > 1 ? LETTERS.indexOf(pressed) : -1;
  if (pressed === "?") help();
  else if (pressed === "u") undo();
  else if (!look && pressed === "m" && !at("done").hidden && state.more) more();
  else if (!look) return;
  else if (place >= 0 && place < look.photos.length && pressed.length === 1) toggle(place);
  else if (pressed === "enter" && look.choices.length) answer(suggested());
  else if (pressed === "n" && names().length) answer("");
  else if (pressed === "s") skip();
  else if (/^[1-9]$/.test(pressed) && look.choices[pressed - 1]) answer(look.choices[pressed - 1][0]);
  else if (pressed === "z") enlarge();
  else if (pressed === "/") at("name").focus();
  // Some letters have a meaning of their own, so none begins a name.
  else if (/^\p{L}$/u.test(pressed)) say("Press / to type a name.");
  else return;
  event.preventDefault();
}

async function news() {
  for (;;) {
    try {
      const found = await call("/news", { seen: state ? state.stamp : "" });
      tell(found.state);
      if (!look && !sending) {
        const over = !at("done").hidden;
        if (!over || state.busy || state.looks < state.goal) await step("/look", {});
      }
    } catch (error) {
      say(error.message.replace("Not saved: t", "T"));
      await new Promise((resume) => setTimeout(resume, 3000));
    }
  }
}

const clearName = typeAhead(at("name"), at("options"), names, answer, () => at("question").focus(), JSON.parse(at("name").dataset.add));
at("who").value = kept(() => localStorage, "finelens-who");
at("who").addEventListener("change", () => kept(() => localStorage, "finelens-who", who()));
at("none").addEventListener("click", () => answer(""));
at("skip").addEventListener("click", skip);
at("back").addEventListener("click", undo);
at("zoom").addEventListener("click", enlarge);
at("undo-last").addEventListener("click", undo);
at("more").addEventListener("click", more);
at("typing").addEventListener("submit", (event) => event.preventDefault());
addEventListener("keydown", press);
step("/look", {}).then(news);
