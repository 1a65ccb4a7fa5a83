"use strict";
// Shows one trial after the other, and sends the answers of each. Text is set as text, never as HTML.
const find = (id) => document.getElementById(id);
const main = document.querySelector("main");
let rater = "", questions = {}, trials = [], place = 0;

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

async function ask(path, options) {
  let response, values;
  try {
    response = await fetch(path, options);
    values = await response.json();
  } catch {
    throw new Error("the server does not answer");
  }
  // 409: answered before, in another window.
  if (!response.ok && response.status !== 409) throw new Error(values.error.replace(/\.$/, ""));
  return values;
}

async function show() {
  const trial = trials[place];
  main.hidden = !trial;
  if (!trial) {
    find("message").textContent = "That was all. Thank you!";
    return;
  }
  find("next").disabled = true; // until the images are there
  find("progress").textContent = `${place + 1} of ${trials.length}`;
  find("caption").textContent = trial.caption;
  const titles = trial.sheets.length > 1 ? ["Set A (left)", "Set B (right)"] : [""];
  find("sheets").replaceChildren(...trial.sheets.map((name, side) => element("figure", {},
    element("figcaption", { textContent: titles[side] }),
    element("img", { src: `/sheets/${name}`, alt: titles[side] || "image" }))));
  find("questions").replaceChildren(...Object.entries(questions).map(([name, question]) =>
    element("fieldset", {}, element("legend", { textContent: question.text }),
      ...Object.entries(question.choices).map(([value, text]) => element("label", {},
        element("input", { type: "radio", name, value, required: true }), ` ${text}`)))));
  window.scrollTo(0, 0);
  try {
    await Promise.all([...document.images].map((image) => image.decode()));
    find("next").disabled = false;
  } catch {
    find("message").textContent = "An image cannot be loaded. Reload this page, and start with the same name.";
  }
}

find("start").addEventListener("submit", async (event) => {
  event.preventDefault();
  rater = find("rater").value.trim();
  try {
    ({ questions, trials } = await ask(`/trials?rater=${encodeURIComponent(rater)}`));
    find("start").hidden = true;
    find("message").textContent = "";
    show();
  } catch (error) {
    find("message").textContent = `Cannot start: ${error.message}.`;
  }
});

find("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answers = Object.fromEntries(new FormData(event.target));
  const body = JSON.stringify({ rater, trial: trials[place].id, answers });
  find("next").disabled = true; // a second click must not skip a trial
  try {
    await ask("/answers", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    find("message").textContent = "";
    place += 1;
    show();
  } catch (error) {
    find("message").textContent = `Not saved: ${error.message}. Your answers are still here: press Next to send them again.`;
    find("next").disabled = false;
  }
});
