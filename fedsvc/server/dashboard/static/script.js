// Live parts, and a key for the search field. Every page works without it.
"use strict";

const live = document.querySelector("[data-live]");
const state = document.getElementById("live-state");
const hold = document.getElementById("hold");

async function refresh() {
  const answer = await fetch(live.dataset.live, { credentials: "same-origin", redirect: "error" });
  if (!answer.ok) throw new Error(String(answer.status));
  const text = await answer.text();
  const inside = live.contains(document.activeElement);
  // Who reads with the keyboard in there is not thrown out of it.
  if (inside) return false;
  live.replaceChildren(...new DOMParser().parseFromString(text, "text/html").body.childNodes);
  return live.querySelector("[data-done]") !== null;
}

async function goOn() {
  for (;;) {
    await new Promise((wake) => setTimeout(wake, Number(live.dataset.every)));
    if (document.hidden || hold?.getAttribute("aria-pressed") === "true") continue;
    try {
      if (await refresh()) return;
      if (state.textContent) state.textContent = "";
    } catch {
      if (!state.textContent) state.textContent = "The server does not answer; what you see is old.";
    }
  }
}

if (live) goOn();
if (hold) {
  hold.hidden = false;
  hold.addEventListener("click", () => {
    const held = hold.getAttribute("aria-pressed") !== "true";
    hold.setAttribute("aria-pressed", String(held));
    hold.textContent = held ? "Go on" : "Hold the figures";
  });
}

// On a phone the menu is one line that scrolls. Not by scrollIntoView: with it, Chromium 150 lets Tab begin there,
// behind the way to the content.
const here = document.querySelector("nav [aria-current]")?.getBoundingClientRect();
if (here) {
  const menu = document.querySelector("nav");
  const seen = menu.getBoundingClientRect();
  menu.scrollLeft += here.left + here.width / 2 - seen.left - seen.width / 2;
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const search = document.querySelector("[data-search]");
  if (search) {
    event.preventDefault();
    const fold = search.closest("details");
    if (fold) fold.open = true;
    search.focus();
    search.select();
  }
});
