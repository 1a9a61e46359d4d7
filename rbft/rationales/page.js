"use strict";
// Filters and keys of the page of rationales. Everything it needs stands in the page.
const clips = Array.from(document.querySelectorAll(".clip"), (node) => ({
  node,
  label: node.dataset.class,
  rationales: Array.from(node.querySelectorAll(".rationale"), (item) => ({
    node: item,
    column: item.dataset.column,
    flags: item.dataset.flags ? item.dataset.flags.split(" ") : [],
    words: Number(item.dataset.words),
    text: null,
  })),
  names: null,
}));
const field = (name) => document.getElementById(name);
const form = document.querySelector("form");
const order = clips.map((_, index) => index);
let visible = order;
let current = -1;

const textOf = (item) => (item.text ??= item.node.querySelector(".text").textContent.toLowerCase());
const nameOf = (clip) => (clip.names ??= clip.node.querySelector("h2").textContent.toLowerCase());

function filter() {
  const label = field("class").value;
  const flag = field("flag").value;
  const column = field("column").value;
  const least = field("least").value === "" ? 0 : Number(field("least").value);
  const most = field("most").value === "" ? Infinity : Number(field("most").value);
  const sought = field("text").value.trim().toLowerCase();
  const flagged = (item) =>
    flag === "" ? true
    : flag === "none" ? item.flags.length === 0
    : flag === "any" ? item.flags.length > 0
    : item.flags.includes(flag);
  const narrow = flag !== "" || column !== "" || least > 0 || most < Infinity || sought !== "";
  visible = [];
  clips.forEach((clip, index) => {
    let hits = 0;
    const named = sought !== "" && nameOf(clip).includes(sought);
    for (const item of clip.rationales) {
      const hit = flagged(item)
        && (column === "" || item.column === column)
        && item.words >= least && item.words <= most
        && (sought === "" || named || textOf(item).includes(sought));
      item.node.classList.toggle("other", !hit);
      hits += hit;
    }
    const show = (label === "" || clip.label === label) && (!narrow || hits > 0);
    clip.node.hidden = !show;
    if (show) visible.push(index);
  });
  field("nothing").hidden = visible.length > 0;
  step(0);
  // What was looked at stays in sight; where it is hidden now, the list begins anew.
  if (current >= 0) clips[current].node.scrollIntoView({ block: "start" });
  else window.scrollTo(0, 0);
}

function step(by) {
  if (visible.length === 0) {
    current = -1;
  } else if (by !== 0) {
    const place = visible.indexOf(current);
    current = visible[Math.max(0, Math.min(visible.length - 1, place + by))];
  } else if (!visible.includes(current)) {
    current = -1;
  }
  document.querySelector(".clip.current")?.classList.remove("current");
  if (current >= 0) {
    clips[current].node.classList.add("current");
    if (by !== 0) clips[current].node.scrollIntoView({ block: "start" });
  }
  const place = visible.indexOf(current);
  field("shown").textContent = (place >= 0 ? `clip ${place + 1} of ` : "")
    + `${visible.length} shown` + (visible.length < clips.length ? ` (${clips.length} in all)` : "");
}

form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "Escape") {
    if (typing) event.target.blur();
    else form.reset();
  } else if (!typing && (event.key === "j" || event.key === "k")) {
    step(event.key === "j" ? 1 : -1);
  } else if (!typing && event.key === "/") {
    event.preventDefault();
    field("text").select();
  }
});
document.querySelector("main").addEventListener("click", (event) => {
  const node = event.target.closest(".clip");
  if (node) {
    current = clips.findIndex((clip) => clip.node === node);
    step(0);
  }
});

// A picture is decoded when it comes near: browsers take `loading=lazy` for files from a server only.
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const image of entry.target.querySelectorAll("img[data-src]")) {
      image.src = image.dataset.src;
      image.removeAttribute("data-src");
    }
    near.unobserve(entry.target);
  }
}, { rootMargin: "1500px" });
for (const clip of clips) near.observe(clip.node);

const header = document.querySelector("header");
new ResizeObserver(() =>
  document.documentElement.style.setProperty("--bar", `${header.offsetHeight}px`),
).observe(header);
filter();
