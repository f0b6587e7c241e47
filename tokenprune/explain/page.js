const data = JSON.parse(document.getElementById("data").textContent);
const [t, h, w] = data.grid, ns = "http://www.w3.org/2000/svg";
const make = (name, attributes) => {
  const made = document.createElementNS(ns, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const where = i => {
  const place = `row ${Math.floor(i / w) % h + 1}, column ${i % w + 1}`;
  return t > 1 ? `step ${Math.floor(i / (h * w)) + 1}, ${place}` : place;
};
data.stages.forEach((stage, number) => {
  const box = document.getElementById("stage" + number), why = document.getElementById("why" + number), rects = [];
  if (t > 1) box.classList.add("many");
  for (let frame = 0; frame < t; frame++) {
    const height = w * data.size[1] / data.size[0], cell = height / h;
    const svg = make("svg", {viewBox: `0 0 ${w} ${height}`});
    svg.append(make("image", {href: data.pictures[frame], width: w, height: height, preserveAspectRatio: "none"}));
    for (let j = 0; j < h * w; j++) {
      const i = frame * h * w + j;
      const rect = make("rect", {x: j % w, y: Math.floor(j / w) * cell, width: 1, height: cell, "data-token": i});
      rect.classList.add(stage.kept[i] ? "kept" : stage.present[i] ? "gone" : "before");
      rect.addEventListener("mouseenter", () => show(i));
      rects.push(rect); svg.append(rect);
    }
    box.append(svg);
  }
  const show = i => {
    rects.forEach(rect => rect.classList.remove("target"));
    const here = stage.kept[i] ? "stays" : "goes", gone = stage.kept[i] ? "comes back" : "went at an earlier stage";
    const fate = stage.present[i] ? here : gone;
    const words = [`${where(i)}: ${fate}`];
    if (stage.scores[i] !== null) words.push("score " + stage.scores[i]);
    if (stage.ranks[i] > 0) words.push("rank " + stage.ranks[i]);
    if (stage.merged[i] >= 0 && stage.merged[i] !== i) words.push("folded into " + where(stage.merged[i]));
    const near = stage.merged[i] >= 0 ? stage.merged[i] : stage.nearest[i];
    if (!stage.kept[i] && stage.nearest[i] >= 0)
      words.push(`most like the kept token at ${where(stage.nearest[i])} (cosine ${stage.likeness[i]})`);
    if (near >= 0 && near !== i) rects[near].classList.add("target");
    why.textContent = words.join(" \u00b7 ");
  };
  const toggle = document.querySelector(`input[data-stage="${number}"]`);
  if (toggle) toggle.addEventListener("change", () => {
    const known = stage.scores.filter(x => x !== null), low = Math.min(...known), high = Math.max(...known);
    rects.forEach((rect, i) => {
      const on = toggle.checked && stage.scores[i] !== null;
      const part = high > low ? (stage.scores[i] - low) / (high - low) : .5;
      rect.style.fill = on ? `hsl(${260 - 210 * part} 80% ${25 + 35 * part}%)` : "";
      rect.style.fillOpacity = on ? .7 : "";
    });
  });
});
