// A small shop for trial recordings. Its coupon button is broken and its checkout fails, on purpose.

const byId = (id) => document.getElementById(id);
// The SDK decides whether a click was dead 7 s after it (slowClickTimeout), or a little later.
const VERDICT_MS = 7000, VERDICT_MS_MAX = 12_000, POLL_MS = 200;
const cart = [];
let brokenAt = 0;

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

async function send(path, body) {
  const sent = body && { method: "POST", headers: { "Content-Type": "application/json", "X-Cart": String(cart.length) } };
  const answer = await fetch(path, body ? { ...sent, body: JSON.stringify(body) } : {});
  if (!answer.ok) throw new Error(`${path} failed with status ${answer.status}`);
  return answer.json();
}

async function add(item, button) {
  button.disabled = true;
  try {
    await send("/shop/cart", { item: item.name, count: 1 });
    cart.push(item);
    byId("count").textContent = cart.length;
    byId("lines").append(element("li", {}, `${item.name}, ${item.price} €`));
  } finally {
    button.disabled = false;
  }
}

async function stock() {
  const { items } = await send("/shop/items");
  for (const item of items) {
    const button = element("button", { "data-testid": `add-${item.id}`, "aria-label": `Add ${item.name}` }, "Add to cart");
    button.addEventListener("click", () => add(item, button));
    const picture = element("div", { class: "picture", style: `--colour: ${item.colour}` }, item.sign);
    byId("items").append(element("li", { class: "item" }, picture, element("b", {}, item.name), `${item.price} €`, button));
  }
}

/** Shows the shop or the cart, depending on the address. */
function show() {
  const page = new URLSearchParams(location.search).get("page") === "cart" ? "cart" : "shop";
  for (const name of ["shop", "cart"]) byId(name).hidden = name !== page;
}

function go(event) {
  event.preventDefault();
  history.pushState({}, "", event.currentTarget.href);
  show();
}

async function checkout() {
  byId("failure").textContent = "";
  try {
    await send("/shop/checkout", { items: cart.map((item) => item.name), name: byId("name").value });
  } catch (error) {
    console.error("checkout failed", error.message);
    Sentry.captureException(error);
    byId("failure").textContent = "Something went wrong. Try again later.";
  }
}

/** Draws on the gift card: a line that follows the pointer. */
function gift() {
  const canvas = byId("gift");
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff7e0";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = "#7a4b00";
  pen.font = "16px serif";
  pen.fillText("Gift card: draw here", 12, 24);
  pen.strokeStyle = "#b3261e";
  pen.lineWidth = 3;
  canvas.addEventListener("pointerdown", (event) => {
    pen.beginPath();
    pen.moveTo(event.offsetX, event.offsetY);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    pen.lineTo(event.offsetX, event.offsetY);
    pen.stroke();
  });
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Sends the recording so far, and opens the page that waits for it. Until the SDK knows whether the last clicks were
 * dead, only a blocked element changes, because any recorded change would count as a reaction to the clicks. */
async function watch() {
  const replay = Sentry.getReplay();
  while (brokenAt && Date.now() - brokenAt < VERDICT_MS_MAX) {
    const left = Math.max(0, Math.ceil((brokenAt + VERDICT_MS - Date.now()) / 1000));
    byId("wait").textContent = `The SDK decides in ${left} s whether your last clicks were dead`;
    await pause(POLL_MS);
  }
  byId("wait").textContent = "Sending the recording";
  await replay.flush();
  location.assign(`/watch/${replay.getReplayId()}`);
}

byId("dsn").textContent = document.documentElement.dataset.dsn;
for (const link of document.querySelectorAll("nav a")) link.addEventListener("click", go);
addEventListener("popstate", show);
byId("coupon").addEventListener("click", () => (brokenAt = Date.now()));
byId("checkout").addEventListener("click", checkout);
byId("watch").addEventListener("click", watch);
// A verdict that comes too early is about earlier clicks.
addEventListener("verdict", () => (brokenAt = Date.now() - brokenAt < VERDICT_MS - 500 ? brokenAt : 0));
addEventListener("pageshow", () => (byId("wait").textContent = "")); // also after Back from the recording
gift();
show();
stock();
