"use strict";
// The page of distae explore: what is chosen is asked of the server beside it. No library, no other request.
(() => {
  const at = (name) => document.getElementById(name), about = JSON.parse(at("data").textContent);
  const NEAR_AFTER = 200; // milliseconds without a change
  let now = { code: about.code, indices: null, label: 0 }, a = null, b = null, waiting = null, busy = false, soon = 0;

  function make(name, attributes, parent, ...inside) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...inside);
    parent?.append(element);
    return element;
  }

  function say(text, isProblem = false) {
    at("status").textContent = text;
    at("status").classList.toggle("problem", isProblem);
  }

  async function ask(name, question) {
    let response;
    try {
      response = await fetch(name, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question) });
    } catch {
      throw new Error("No answer: distae explore has ended, or the tunnel to it.");
    }
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    return answer;
  }

  // One request at a time; of changes that come meanwhile the last is asked for next. `question` is called when it is sent.
  async function change(name, question, text) {
    waiting = [name, question, text];
    if (busy) return;
    busy = true;
    while (waiting) {
      const [next, of, what] = waiting;
      waiting = null;
      try {
        show(await ask(next, of()), what);
      } catch (error) {
        say(error.message, true);
      }
    }
    busy = false;
  }

  function show(answer, what) {
    picture(at("decoded"), answer.shown, "What the code is decoded to");
    at("from").hidden = !answer.input;
    if (answer.input) picture(at("input"), answer.input, "What was encoded");
    say(what ?? (answer.split ? `${answer.split} sample ${answer.sample}` : ""));
    if (waiting) return; // of a slider that has moved on
    now = answer;
    if (at("label")) at("label").value = now.label;
    for (const slider of sliders) place(slider);
    document.querySelector("#map .chart")?.dispatchEvent(new CustomEvent("mark", { detail: now.at }));
    tokens();
    active();
    clearTimeout(soon);
    soon = setTimeout(near, NEAR_AFTER);
  }

  function picture(box, shown, text) {
    if (shown.picture) {
      const image = box.querySelector("img") ?? make("img", {});
      image.src = shown.picture;
      image.alt = text;
      box.replaceChildren(image);
      return;
    }
    const table = make("table", { "aria-label": text });
    const body = make("tbody", {}, table);
    for (const [name, value] of Object.entries(shown.values)) make("tr", {}, body, make("th", { scope: "row" }, null, name), make("td", { class: "number" }, null, value));
    box.replaceChildren(table);
    box.tabIndex = 0;
  }

  const label = () => Number(at("label")?.value ?? now.label);
  const decode = (text) => change("decode", () => ({ code: now.code, label: label() }), text);
  const number = (value) => String(Number(value.toPrecision(3)));

  // Sliders.
  const sliders = [...document.querySelectorAll("[data-dimension]")];
  function place(slider) {
    const value = now.code[slider.dataset.dimension];
    if (document.activeElement !== slider || Math.abs(slider.value - value) > slider.step) slider.value = value;
    slider.nextElementSibling.textContent = number(value);
  }
  for (const slider of sliders)
    slider.addEventListener("input", () => {
      now = { ...now, code: now.code.with(slider.dataset.dimension, Number(slider.value)) };
      slider.nextElementSibling.textContent = number(Number(slider.value));
      decode(`dimension ${slider.dataset.dimension}`);
    });
  at("label")?.addEventListener("change", () => decode("another label"));

  // Samples.
  const sample = (number, isTraining) => change("sample", () => ({ number, is_training: isTraining }));
  at("show").addEventListener("click", () => sample(Number(at("number").value), false));
  at("random").addEventListener("click", () => {
    at("number").value = Math.floor(Math.random() * about.samples);
    at("show").click();
  });
  at("start").addEventListener("click", () => {
    now = { ...now, code: about.code };
    decode("the code at the start");
  });

  function gallery(box, found, isTraining, caption) {
    if (!found.samples.length) { box.replaceChildren("None."); return; }
    const buttons = found.samples.map((of) => {
      const name = `${found.split} ${of.number}${of.label === null ? "" : `, label ${of.label}`}`, button = make("button", { type: "button" });
      button.addEventListener("click", () => sample(of.number, isTraining));
      if (of.shown.picture) make("img", { src: of.shown.picture, alt: name }, button);
      make("span", {}, button, name);
      make("small", {}, button, `${caption} ${number(of.value)}`);
      return button;
    });
    box.className = "samples";
    box.replaceChildren(...buttons);
    if (!found.samples[0].shown.picture) rows(box, found, buttons);
  }

  // Samples that are not pictures: a row of a table each.
  function rows(box, found, buttons) {
    const names = Object.keys(found.samples[0].shown.values), table = make("table", { "aria-label": "Samples, each with its values" });
    const head = make("tr", {}, make("thead", {}, table));
    for (const name of ["sample", ...names]) make("th", { scope: "col" }, head, name);
    const body = make("tbody", {}, table);
    found.samples.forEach((of, i) => {
      const row = make("tr", {}, body);
      make("th", { scope: "row" }, row, buttons[i]);
      for (const name of names) make("td", { class: "number" }, row, of.shown.values[name]);
    });
    box.className = "table";
    box.tabIndex = 0;
    box.replaceChildren(table);
  }

  async function near() {
    const asked = now;
    try {
      const found = await ask("near", { code: asked.code });
      if (asked === now) gallery(at("near"), found, true, "distance");
    } catch (error) {
      say(error.message, true);
    }
  }

  // An image of one's own.
  function upload(file) {
    if (!file) return;
    if (file.size > about.largest) { say(`${file.name} is too large: at most ${about.largest >> 20} MiB are taken`, true); return; }
    const reader = new FileReader();
    reader.addEventListener("load", () => {
      const image = reader.result.slice(reader.result.indexOf(",") + 1);
      change("encode", () => ({ image, invert: at("invert").checked, label: label() }), file.name);
    });
    reader.addEventListener("error", () => say(`${file.name} cannot be read`, true));
    reader.readAsDataURL(file);
  }
  if (at("drop")) {
    at("file").addEventListener("change", () => upload(at("file").files[0]));
    at("invert").addEventListener("change", () => upload(at("file").files[0]));
    for (const kind of ["dragover", "dragleave", "drop"])
      document.addEventListener(kind, (event) => {
        event.preventDefault(); // else the browser leaves the page to show the file
        at("drop").classList.toggle("over", kind === "dragover");
        if (kind === "drop" && event.dataTransfer.files.length) {
          at("file").files = event.dataTransfer.files;
          upload(event.dataTransfer.files[0]);
        }
      });
  }

  // The map.
  document.querySelector("#map .chart")?.addEventListener("pick", ({ detail: { at: to, point } }) => {
    const choosesSample = at("nearest")?.checked ?? true;
    if (!choosesSample) change("move", () => ({ code: now.code, to, label: label() }), "the code at this place of the map");
    else if (point) { at("number").value = point[3]; sample(point[3], false); }
  });

  // From one code to another.
  function keep(name) {
    if (name === "a") a = now;
    else b = now;
    picture(at(name), now.shown, `The code that is kept as ${name.toUpperCase()}`);
    at("share").disabled = !(a && b);
    if (at("swap-tokens")) at("swap-tokens").disabled = !b?.indices;
  }
  at("keep-a").addEventListener("click", () => keep("a"));
  at("keep-b").addEventListener("click", () => keep("b"));
  at("share").addEventListener("input", () => {
    const share = Number(at("share").value);
    change("morph", () => ({ a: a.code, b: b.code, share, label: label() }), `${Math.round(100 * share)}% of the way from A to B`);
  });

  // Discrete codes.
  const selected = new Set();
  function tokens() {
    if (!at("token-map")) return;
    if (!now.indices) { at("token-map").replaceChildren("This code is not one of the codebook's: choose a sample."); return; }
    const [levels, rows, columns] = about.tokens, grids = [];
    for (let level = 0; level < levels; level++) {
      const grid = make("div", { class: "tokens", role: "group", "aria-label": `Codes of level ${level}` });
      grid.style.gridTemplateColumns = `repeat(${rows === 1 ? "auto-fill" : columns}, minmax(2.2rem, 3rem))`;
      for (let i = level * rows * columns; i < (level + 1) * rows * columns; i++) {
        const button = make("button", { type: "button", "aria-pressed": String(selected.has(i)), "aria-label": `position ${i}: code ${now.indices[i]}` }, grid, String(now.indices[i]));
        button.addEventListener("click", () => {
          selected.has(i) ? selected.delete(i) : selected.add(i);
          button.setAttribute("aria-pressed", String(selected.has(i)));
        });
      }
      grids.push(grid);
    }
    at("token-map").replaceChildren(...grids);
  }
  function replace(of, text) {
    if (!now.indices || !selected.size) { say("Select some positions first.", true); return; }
    change("tokens", () => ({ indices: now.indices.map((old, i) => (selected.has(i) ? of(i) : old)), label: label() }), `${selected.size} positions ${text}`);
  }
  at("set-tokens")?.addEventListener("click", () => replace(() => Number(at("token").value), `with code ${at("token").value}`));
  at("swap-tokens")?.addEventListener("click", () => replace((i) => b.indices[i], "with the codes of B"));
  at("no-tokens")?.addEventListener("click", () => { selected.clear(); tokens(); });

  // Sparse codes.
  function active() {
    at("active")?.replaceChildren(...now.active.map(([latent, value]) => {
      const button = make("button", { type: "button" }, null, `${latent}: ${number(value)}`);
      button.addEventListener("click", () => { at("latent").value = latent; at("show-latent").click(); });
      return button;
    }));
  }
  at("show-latent")?.addEventListener("click", async () => {
    try {
      gallery(at("top"), await ask("top", { latent: Number(at("latent").value) }), true, "value");
    } catch (error) {
      say(error.message, true);
    }
  });

  if (about.tokens || at("active")) sample(0, false);
  else decode("the mean code");
})();
