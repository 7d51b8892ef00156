// Waits until the recording is stored, then opens it in the replay pages.

const { replay, project, web } = document.documentElement.dataset;
const POLL_MS = 250;
const say = (id, text) => (document.getElementById(id).textContent = text);

async function wait() {
  const answer = await fetch(`/watch/${replay}/progress`);
  if (!answer.ok) throw new Error(answer.status === 404 ? "Nothing of this replay was received yet." : `Status ${answer.status}.`);
  const found = await answer.json();
  for (const name of ["received", "stored", "durable"]) say(name, found[name]);
  say("seconds", found.seconds.toFixed(1));
  if (found.trouble) say("status", found.trouble);
  if (found.ready_seconds === null) return false;
  say("status", `Stored ${found.ready_seconds.toFixed(1)} s after the last segment. Opening it.`);
  location.replace(`${web}/replay/${project}/${replay}`);
  return true;
}

async function poll() {
  try {
    if (await wait()) return;
  } catch (error) {
    say("status", error.message);
  }
  setTimeout(poll, POLL_MS);
}
poll();
