// The page's behaviour: sends requests to the server and shows the responses. Names are inserted only as text.
"use strict";

const at = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;

let gallery = null; // begin, most_bytes, examples
let shown = null; // the query on the page: its name, rank, rows, columns and position
let latest = 0; // number of the latest request; responses to earlier ones are not shown

function say(text, refused = false) {
  at("status").textContent = text;
  at("status").classList.toggle("refused", refused);
}

// Send a request; `show` gets the response unless a later request was sent. A refusal is shown with the server's text.
async function send(address, body, show) {
  const own = ++latest;
  document.body.setAttribute("aria-busy", "true");
  try {
    const isFile = body instanceof Blob;
    const response = await fetch(address, {
      method: "POST",
      headers: { "Content-Type": isFile ? "application/octet-stream" : "application/json" },
      body: isFile ? body : JSON.stringify(body),
    });
    if (own !== latest) return;
    if (response.ok) show(await response.json());
    else say(`Refused: ${await response.text()}`, true);
  } catch (error) {
    if (own === latest) say("The server does not respond. Is it still running?", true);
  } finally {
    if (own === latest) document.body.removeAttribute("aria-busy");
  }
}

function pictureButton(picture, alt, choose) {
  const button = document.createElement("button");
  button.type = "button";
  const image = document.createElement("img");
  image.alt = alt;
  if (picture !== null) image.src = picture;
  button.append(image);
  button.addEventListener("click", () => choose(button));
  return button;
}

function asItem(element) {
  const item = document.createElement("li");
  item.append(element);
  return item;
}

function press(list, button) {
  for (const one of list.querySelectorAll("button")) one.setAttribute("aria-pressed", String(one === button));
}

function showExamples() {
  const modality = chosen("modality");
  const items = gallery.examples[modality].map((example, number) =>
    asItem(pictureButton(example.picture, `${modality} example ${number + 1}`,
      (button) => searchExample(number, example.name, button))));
  at("examples").replaceChildren(...items);
}

function searchExample(number, name, button) {
  const modality = chosen("modality");
  press(at("examples"), button);
  say("Searching…");
  send("search/example", { modality, among: chosen("among"), example: number },
    (found) => showFound(found, name));
}

function searchFile(file) {
  if (file.size > gallery.most_bytes) {
    say(`Refused: ${file.name} is larger than ${gallery.most_bytes / 2 ** 20} MiB; make it smaller`, true);
    return;
  }
  press(at("examples"), null);
  say("Searching…");
  const fields = new URLSearchParams({ modality: chosen("modality"), among: chosen("among") });
  send(`search/upload?${fields}`, file, (found) => showFound(found, file.name));
}

function showFound(found, name) {
  shown = { query: found.query, searched: found.searched, matches: found.matches };
  const items = found.matches.map((match, rank) => {
    const button = pictureButton(match.picture, `Match ${rank + 1}`, () => chooseMatch(rank));
    const caption = document.createElement("span");
    caption.textContent = match.caption;
    button.append(caption);
    return asItem(button);
  });
  at("matches").replaceChildren(...items);
  if (found.comparison.problem) {
    for (const id of ["query", "heat", "mask", "other-mask"]) at(id).querySelector("img").removeAttribute("src");
    at("query").disabled = true;
    say(`Refused: ${found.comparison.problem}`, true);
  } else {
    showComparison(found.comparison, `${name}, ${found.modality}: `);
  }
}

function chooseMatch(rank) {
  send(`queries/${shown.query}/match`, { rank }, (comparison) => showComparison(comparison, ""));
}

function showComparison(comparison, begin) {
  Object.assign(shown, comparison);
  at("query").disabled = false;
  press(at("matches"), at("matches").querySelectorAll("button")[comparison.rank]);
  showPictures(comparison.pictures);
  const caption = shown.matches[comparison.rank].caption;
  say(`${begin}match ${comparison.rank + 1} of the nearest ${shown.matches.length} among the ${shown.searched} images`
    + ` · ${caption}`);
}

function showPictures(pictures) {
  const words = { query: "", heat: "The match, bright where the point of the query is found",
    mask: "The query with the person coloured", "other-mask": "The match with the person coloured" };
  for (const [id, picture] of Object.entries(pictures)) {
    const image = at(id).querySelector("img");
    image.src = picture;
    image.alt = words[id];
  }
}

function choosePlace(x, y) {
  const inside = (share) => Math.min(Math.max(share, 0), 1);
  send(`queries/${shown.query}/place`, { rank: shown.rank, x: inside(x), y: inside(y) }, (place) => {
    shown.position = place.position;
    showPictures(place.pictures);
  });
}

function movePlace(event) {
  const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
  if (down === undefined) return;
  event.preventDefault();
  const row = Math.floor(shown.position / shown.columns) + down;
  const column = (shown.position % shown.columns) + right;
  if (row < 0 || row >= shown.rows || column < 0 || column >= shown.columns) return;
  choosePlace((column + 0.5) / shown.columns, (row + 0.5) / shown.rows);
}

function takeFiles(files) {
  if (files.length > 0) searchFile(files[0]);
}

async function begin() {
  if (location.search) history.replaceState(null, "", location.pathname); // removes the token, which is no longer needed
  gallery = await (await fetch("gallery")).json();
  document.querySelector(`#modality input[value="${gallery.begin}"]`).checked = true;
  at("limit").textContent = `At most ${gallery.most_bytes / 2 ** 20} MiB.`;
  showExamples();
  at("modality").addEventListener("change", showExamples);
  at("file").addEventListener("change", (event) => {
    takeFiles(event.target.files);
    event.target.value = ""; // so that the same file can be chosen again
  });
  at("query").addEventListener("keydown", movePlace);
  at("query").addEventListener("click", (event) => {
    if (event.detail === 0) return; // the Enter key, which has no position
    const box = at("query").querySelector("img").getBoundingClientRect();
    choosePlace((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault(); // otherwise a file dropped outside the frame would replace the page
      at("upload").classList.toggle("over", name === "dragover");
      if (name === "drop") takeFiles(event.dataTransfer.files);
    });
  }
}

begin().catch(() => say("The server does not respond. Load the page again.", true));
