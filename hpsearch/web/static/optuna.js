// A link from each page of optuna-dashboard to the page of hpsearch that is about the same study.
"use strict";

const way = document.createElement("a");
way.className = "hpsearch-way";
way.textContent = "hpsearch pages";

function point() {
  const study = location.pathname.match(/^\/dashboard\/studies\/(\d+)/);
  way.href = study ? `/hpsearch/study/${study[1]}` : "/hpsearch/";
}

point();
way.addEventListener("pointerenter", point);
way.addEventListener("focus", point);
way.addEventListener("click", point);
document.body.append(way);
