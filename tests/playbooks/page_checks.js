// What test_report.py asks of the page. Backgrounds are plain colours, opaque or absent.
const numbers = colour => colour.match(/[\d.]+/g).map(Number);

// Relative luminance and contrast: WCAG 2.1.
const luminance = colour => {
  const [r, g, b] = numbers(colour).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (one, two) => {
  const [high, low] = [luminance(one), luminance(two)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
};
const behind = element => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor, parts = numbers(colour);
    if (parts.length < 4 || parts[3] === 1) return colour;
    if (parts[3] !== 0) throw new Error('half transparent: ' + at.className);
  }
  return 'rgb(255, 255, 255)';
};
const hidden = (element, box) => {
  const style = getComputedStyle(element), head = element.closest('thead');
  return style.visibility !== 'visible' || style.opacity !== '1' || box.width < 1 || box.height < 1
    || head && getComputedStyle(head).clipPath !== 'none';
};

// Every piece of text that can be seen, with its contrast and what it needs (1.4.3).
const texts = () => {
  const seen = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.data.trim(), element = walk.currentNode.parentElement, range = document.createRange();
    range.selectNodeContents(walk.currentNode);
    if (!text || hidden(element, range.getBoundingClientRect())) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const large = size >= 24 || parseInt(style.fontWeight) >= 700 && size >= 18.66;
    seen.push({text, size, contrast: contrast(style.color, behind(element)), needs: large ? 3 : 4.5});
  }
  return seen;
};

// The edges that tell states apart, against the card that they stand on (1.4.11).
const edges = () => {
  const card = getComputedStyle(document.querySelector('article')).backgroundColor;
  return [...document.querySelectorAll('article, .gpus li.held, .gpus li.sick')].map(
    one => [one.className, contrast(getComputedStyle(one).borderLeftColor, card)]);
};

// What reaches beyond the window, and cards whose content reaches beyond them.
const label = one => `${one.tagName} ${one.className}: ${one.textContent.trim().slice(0, 60)}`;
const overflow = () => [...document.querySelectorAll('body *')].filter(
  one => one.getBoundingClientRect().right > innerWidth + 0.5 && !one.closest('thead')).map(label);
const overfullCards = () => [...document.querySelectorAll('.card, article')].filter(
  one => one.scrollWidth > one.clientWidth + 1).map(label);

// Attributes that would run something, and links that lead off the page or nowhere.
const handlers = () => [...document.querySelectorAll('*')].flatMap(one => [...one.attributes]).filter(
  one => one.name.startsWith('on')).map(one => one.name);
const strayLinks = () => [...document.links].filter(one => {
  const name = one.getAttribute('href').slice(1);
  return !one.getAttribute('href').startsWith('#')
    || !document.getElementById(name) && !document.getElementById(decodeURIComponent(name));
}).map(one => one.outerHTML);
