"use strict";

const at = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
const duration = (seconds) => {
  if (seconds >= 1) return `${seconds.toFixed(2)}\u00a0s`;
  return `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)}\u00a0ms`;
};

const KINDS = {
  classes: { before: "", drawing: "class activation", amount: ["Classes shown", "top", 10, 1, 1000, 1] },
  shares: {
    before: "Largest: ", drawing: "drawing", caption: "The classes in their colours over the photo.",
    all: "each class in its colour", one: "coloured",
  },
  objects: {
    before: "Surest: ", drawing: "drawing", caption: "What was found on the photo.",
    all: "a frame round each object", one: "framed", amount: ["Minimum score", "threshold", 0.3, 0, 1, 0.01],
  },
}; // by the list that a result holds; an amount is a label, the query's parameter, its default, its limits and its step
const kindOf = (result) => Object.keys(KINDS).find((kind) => result[kind]);

let info = null; // what /info tells
let photo = null; // the file that is looked at
let waiting = null; // aborts the request that is under way

function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text; // names of classes are somebody's text, never HTML
  if (kind) made.className = kind;
  return made;
}

function name(text) {
  return element("bdi", text);
}

function complain(sentence) {
  at("trouble").textContent = sentence;
  say("");
}

function say(sentence, busy = false) {
  at("said").textContent = sentence;
  at("said").classList.toggle("busy", busy);
}

function clear() {
  at("trouble").textContent = "";
  at("bars").replaceChildren();
  at("timing").hidden = at("where").hidden = true;
}

async function get(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it still running?");
  }
  let told;
  try {
    told = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server's answer cannot be read.");
  }
  if (!answer.ok) throw new Error(told.error || "The server refused this without a reason.");
  return told;
}

async function look(shownClass) {
  waiting?.abort();
  const mine = (waiting = new AbortController());
  const form = new FormData();
  form.append("images", photo, photo.name || "photo");
  const query = new URLSearchParams({ top: 10, overlay: info.overlay.offered });
  if (at("value").name && at("value").reportValidity()) query.set(at("value").name, at("value").value);
  if (shownClass) query.set("class", shownClass);
  at("found").setAttribute("aria-busy", "true");
  try {
    const answer = await get(`predict?${query}`, { method: "POST", body: form, signal: mine.signal });
    return mine.signal.aborted ? null : answer;
  } catch (error) {
    if (error.name === "AbortError") return null;
    throw error;
  } finally {
    if (waiting === mine) at("found").setAttribute("aria-busy", "false");
  }
}

async function take(file) {
  photo = file;
  clear();
  preview(file);
  if (info === null && !(await learn())) return;
  if (file.size > info.limits.bytes) {
    complain(`This file has ${(file.size / 1e6).toFixed(1)} MB; ${info.limits.bytes / 1e6} MB are allowed.`);
    return;
  }
  say("Looking at it …", true);
  try {
    const answer = await look();
    if (answer) show(answer);
  } catch (error) {
    complain(error.message);
  }
}

function preview(file) {
  URL.revokeObjectURL(at("photo").src);
  at("photo").hidden = true;
  at("photo").onload = () => (at("photo").hidden = false); // a browser cannot show all that the server can read
  at("photo").src = URL.createObjectURL(file);
}

function show(answer) {
  const result = answer.results[0];
  const rows = result[kindOf(result)];
  const value = (row) => row.probability ?? row.share ?? row.score;
  const { before } = KINDS[kindOf(result)];
  const several = rows.some((row) => row.threshold !== undefined);
  document.querySelector("main").classList.add("answered");
  at("said").classList.remove("busy");
  if (several) at("said").replaceChildren(...labels(rows.filter((row) => row.applies)));
  else at("said").replaceChildren(
    ...(rows.length ? [before, name(rows[0].class), `, ${percent(value(rows[0]))}`] : ["No object was found."]));
  if (result.pages) at("said").append(` (the first of ${result.pages} frames or pages)`);
  at("bars").replaceChildren(...rows.map((row) => bar(row, value(row))));
  offerAmount(KINDS[kindOf(result)].amount);
  choices(result, [...new Set(rows.map((row) => row.class))]);
  showOverlay(answer);
}

function labels(rows) {
  if (!rows.length) return ["No label applies."];
  return rows.flatMap((row, i) => [i ? ", " : "", name(row.class)]);
}

function offerAmount(amount) {
  at("amount").hidden = !amount;
  if (!amount || at("value").name) return;
  const [label, parameter, start, min, max, step] = amount;
  document.querySelector("label[for=value]").textContent = label;
  Object.assign(at("value"), { name: parameter, min, max, step, required: true, value: start });
}

function bar(row, share) {
  const item = element("li");
  const label = element("span");
  if (row.colour) {
    const swatch = element("span", undefined, "swatch");
    swatch.style.backgroundColor = row.colour;
    label.append(swatch);
  }
  label.append(name(row.class), row.applies ? " ✓" : "");
  const drawn = element("div", undefined, row.colour ? "bar coloured" : "bar");
  const filled = element("span");
  filled.style.width = `${100 * share}%`;
  if (row.colour) filled.style.backgroundColor = row.colour;
  drawn.append(filled);
  drawn.setAttribute("aria-hidden", "true"); // the figure beside it says the same
  item.append(label, element("span", percent(share)), drawn);
  return item;
}

function choices(result, found) {
  const rest = result.classes ? info.classes.filter((one) => !found.includes(one)) : [];
  const options = [...found, ...rest].map((one) => new Option(one, one));
  if (!result.classes) options.unshift(new Option("all classes", ""));
  at("class").replaceChildren(...options);
}

function showOverlay(answer) {
  const result = answer.results[0];
  const { overlay, overlay_class: shownClass } = result;
  at("where").hidden = false;
  at("shown").hidden = !overlay;
  at("overlay").classList.remove("stale");
  at("why").textContent = overlay ? "" : info.overlay.why_not || "";
  if (overlay) {
    at("overlay").src = overlay;
    at("class").value = shownClass || "";
    describe(result, shownClass);
  }
  showTimes(KINDS[kindOf(result)].drawing, answer.seconds);
}

function describe(result, shownClass) {
  if (result.classes) {
    at("caption").replaceChildren(
      "What the model saw of the photo. The brighter the colour, the more a place speaks for ", name(shownClass), ".");
    at("overlay").alt = `The photo, brightest where it speaks for ${shownClass}`;
  } else {
    const size = result.reduced_to;
    const told = size ? ` It was reduced to ${size[0]} x ${size[1]} pixels for the model.` : "";
    const { caption, all, one } = KINDS[kindOf(result)];
    at("caption").textContent = caption + told;
    at("overlay").alt = shownClass ? `The photo, ${shownClass} ${one}` : `The photo, ${all}`;
  }
}

function showTimes(drawing, seconds) {
  const parts = { arriving: seconds.read, decoding: seconds.prepare, "in the queue": seconds.queue,
    model: seconds.model };
  if (info.overlay.offered) parts[drawing] = seconds.overlay;
  const pairs = Object.entries({ ...parts, "in all": seconds.total }).map(([what, time]) => {
    const pair = element("div");
    pair.append(element("dt", what), element("dd", duration(time)));
    return pair;
  });
  at("times").replaceChildren(...pairs);
  at("timing").hidden = false;
}

async function learn() {
  try {
    info = await get("info");
  } catch (error) {
    complain(error.message);
    return false;
  }
  const most = `${info.limits.bytes / 1e6} MB and ${info.limits.pixels / 1e6} megapixels`;
  KINDS.objects.amount[2] = info.threshold ?? KINDS.objects.amount[2];
  document.title = `${info.model} · dmformer`;
  at("model").textContent = info.model;
  at("about").textContent = `A ${info.kind} of ${info.classes.length} classes, run by ${info.form}`;
  at("limits").textContent = `Up to ${most}: ${info.limits.formats.join(", ")}`;
  return true;
}

function firstFile(list) {
  return [...list].find((item) => item instanceof File) || null;
}

at("file").addEventListener("change", () => {
  const file = firstFile(at("file").files);
  at("file").value = ""; // the same file may be chosen again
  if (file) take(file);
});

at("value").addEventListener("change", async () => {
  if (!at("value").reportValidity()) return;
  try {
    const answer = await look(at("class").value);
    if (answer) show(answer);
  } catch (error) {
    complain(error.message);
  }
});

at("class").addEventListener("change", async () => {
  at("overlay").classList.add("stale");
  try {
    const answer = await look(at("class").value);
    if (answer) showOverlay(answer);
  } catch (error) {
    at("where").hidden = true;
    complain(error.message);
  }
});

document.addEventListener("paste", (event) => {
  const file = event.clipboardData && firstFile(event.clipboardData.files);
  if (file) take(file);
});

for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // or the browser opens the file
    at("drop").classList.toggle("over", kind === "dragover");
    const file = kind === "drop" && firstFile(event.dataTransfer.files);
    if (file) take(file);
    else if (kind === "drop") complain("What was dropped is not a file: save the picture and choose it.");
  });
}

learn();
