"use strict";
document.documentElement.classList.add("js");
const form = document.querySelector(".filters");
const sections = [...document.querySelectorAll(".operation")];
form.hidden = false;

function show() {
  const wanted = Object.fromEntries(new FormData(form));
  const words = wanted.text.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const part of document.querySelectorAll("[data-dtype]")) {
    part.hidden = Boolean(wanted.dtype) && part.dataset.dtype !== wanted.dtype;
  }
  for (const section of sections) {
    const asked = !wanted.op || section.dataset.op === wanted.op;
    let rows = 0;
    for (const row of section.querySelectorAll("details.row")) {
      const cells = [...row.querySelectorAll("summary [data-verdict]")].filter((cell) =>
        !cell.hidden && (!wanted.verdict || cell.dataset.verdict === wanted.verdict));
      const text = row.dataset.text.toLowerCase();
      row.hidden = !asked || !cells.length || !words.every((word) => text.includes(word));
      rows += row.hidden ? 0 : cells.length;
    }
    section.hidden = !rows;
    shown += rows;
  }
  form.querySelector("output").value = `${shown} rows`;
}

form.addEventListener("input", show);
form.addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("click", async (event) => {
  if (!event.target.matches(".copy")) return;
  const line = event.target.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(line.textContent);
    event.target.textContent = "copied";
  } catch {
    getSelection().selectAllChildren(line);
    event.target.textContent = "selected";
  }
  setTimeout(() => { event.target.textContent = "copy"; }, 1500);
});
show();
