// What the theme leaves out for readers without a mouse or without eyes: a name for the search, tables that scroll by keys,
// and a bar of buttons at each block of code that is no landmark of the page.
const mend = () => {
  document.querySelector('.md-search')?.setAttribute('aria-label', 'Search');
  for (const bar of document.querySelectorAll('.md-code__nav')) bar.setAttribute('role', 'presentation');
  for (const around of document.querySelectorAll('.md-typeset__scrollwrap'))
    if (around.scrollWidth > around.clientWidth) around.tabIndex = 0;
    else around.removeAttribute('tabindex');
};
addEventListener('resize', mend);
new MutationObserver(mend).observe(document.documentElement, { childList: true, subtree: true });
mend();
