// The secret of a one-time link is in the URL's fragment, which the browser
// sends to nobody. It leaves the address bar and the history at once.
"use strict";
const secret = location.hash.slice(1);
history.replaceState(null, "", "/setup");
const form = document.getElementById("form");
const status = document.getElementById("status");
const say = (text, bad) => {
  status.textContent = text;
  status.className = bad ? "bad" : "";
};
if (secret === "") {
  form.hidden = true;
  say("This page needs a one-time link. Ask an administrator for one.", true);
}
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const password = document.getElementById("password").value;
  if (password !== document.getElementById("again").value) {
    say("The two are not the same.", true);
    return;
  }
  say("…", false);
  try {
    const answer = await fetch("/api/v1/password/reset", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ link: secret, password }),
    });
    const body = await answer.json();
    if (!answer.ok) {
      say(body.errors?.length ? "The password " + body.errors[0].message + "." : body.detail || body.title, true);
      return;
    }
    form.hidden = true;
    say("The password is set. Sign in as " + body.login + ".", false);
  } catch {
    say("The manager did not answer. Try again.", true);
  }
});
