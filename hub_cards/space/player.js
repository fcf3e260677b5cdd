// Keywords on a waveform: a press plays the keyword's moment; a line and the keyword being heard follow the player.
// `element` is the answer's place on the page; its content is replaced with each answer, so listen to it and not to
// what is in it. Reports of evaluations use the same code, for all of the page.
let stopAt = null;

const follow = (audio) => {
  const card = audio.closest(".card");
  if (!card || !audio.duration) return;
  if (stopAt !== null && audio.currentTime >= stopAt) {
    audio.pause();
    stopAt = null;
  }
  const head = card.querySelector(".head");
  if (head) {
    head.hidden = false;
    head.style.left = `${(100 * audio.currentTime) / audio.duration}%`;
  }
  for (const chip of card.querySelectorAll("[data-start]")) {
    const heard = audio.currentTime >= chip.dataset.start && audio.currentTime < chip.dataset.end;
    chip.classList.toggle("heard", heard && !audio.paused);
  }
  if (!audio.paused && audio.isConnected) requestAnimationFrame(() => follow(audio));
};

element.addEventListener("click", (event) => {
  const chip = event.target.closest("[data-start]");
  if (!chip) return;
  const audio = chip.closest(".card").querySelector("audio");
  audio.currentTime = Number(chip.dataset.start);
  stopAt = Number(chip.dataset.end);
  audio.play();
});

// Media events do not bubble, but they can be captured.
element.addEventListener(
  "play",
  (event) => {
    for (const other of element.querySelectorAll("audio")) if (other !== event.target) other.pause();
    follow(event.target);
  },
  true,
);
element.addEventListener("pause", (event) => { stopAt = null; follow(event.target); }, true);
element.addEventListener("seeked", (event) => follow(event.target), true);

// On a phone the answer is below what was asked with: bring it into view.
watch("value", () => {
  if (element.getBoundingClientRect().top > window.innerHeight * 0.6) element.scrollIntoView({ behavior: "smooth" });
});
