// The page of parked batches: selection, confirmation of an abandon, and refresh of the list while it is not in use.

(() => {
  const REFRESH_MS = 5000;
  const form = document.getElementById("parked-form");
  const confirmed = (button) => {
    const all = form?.elements.scope?.value === "all";
    const count = document.getElementById("count")?.textContent;
    const what = all ? "ALL batches that match" : `${count} selected batch${count === "1" ? "" : "es"}`;
    return confirm(button.dataset.confirm ?? `Abandon ${what}? Their messages become dead letters.`);
  };
  document.addEventListener("click", (event) => {
    if (event.target.id === "abandon" && !confirmed(event.target)) event.preventDefault();
  });
  if (!form) return;

  const boxes = () => [...form.querySelectorAll('input[name="batch_id"]')];
  const count = () => {
    const chosen = boxes().filter((box) => box.checked).length;
    const place = document.getElementById("count");
    if (!place) return;
    place.textContent = chosen.toLocaleString("en");
    const all = form.elements.scope.value === "all";
    for (const id of ["retry", "abandon"]) document.getElementById(id).disabled = !all && !chosen;
    const shown = document.getElementById("select-shown");
    if (shown) {
      shown.checked = chosen > 0 && chosen === boxes().length;
      shown.indeterminate = chosen > 0 && !shown.checked;
    }
  };
  form.addEventListener("change", (event) => {
    if (event.target.id === "select-shown") for (const box of boxes()) box.checked = event.target.checked;
    count();
  });

  const inUse = () =>
    document.hidden || boxes().some((box) => box.checked) || form.elements.scope?.value === "all" ||
    form.elements.reason?.value || document.getElementById("parked-list").contains(document.activeElement);
  const refresh = async () => {
    if (inUse()) return;
    const filters = new URLSearchParams();
    for (const name of ["sink", "age", "text"]) if (form.elements[name].value) filters.set(name, form.elements[name].value);
    try {
      // `fetch` refuses an address with a password, which a relative path takes from a page opened as user:password@host.
      const answer = await fetch(new URL(`${form.getAttribute("action")}?${filters}`, location.origin));
      if (!answer.ok || inUse()) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const found = page.getElementById("parked-list");
      if (found) document.getElementById("parked-list").replaceWith(found);
      count();
    } catch {
      // the next refresh tries again
    }
  };
  count();
  setInterval(refresh, REFRESH_MS);
})();
