/** Command lines about secrets and encrypted images, for the list in transcript-cases.ts. Data only. */

/** 32 zeros in base64: a key for secrets that are encrypted. */
const KEY = `${'A'.repeat(43)}=`;
/** 16 zeros. */
const IV = `${'A'.repeat(22)}==`;
/** `secret123`, encrypted with them. */
const ENCRYPTED = 'RPD+fAsX0BQkHz1k7XtHIQ==';
const WITH_KEY = `--object secret,id=k,data=${KEY},format=base64`;

export const SECRET_CASES: readonly string[] = [
  'info --object secret,id=s,data=a,file=gone a.qcow2',
  'info --object secret,id=s,data=a,foo a.qcow2',
  'info --object secret,id a.qcow2',
  "info --object '' a.qcow2",
  'info --object , a.qcow2',
  'info --object secret,id=s,data=a, a.qcow2',
  'info --object secret,id=s,data=a,data=b a.qcow2',
  'info --object secret,id=s,data=a,,b a.qcow2',
  'info --object secret,id=s,data.x=1 a.qcow2',
  'info --object secret,id=s,data=a,loaded=on a.qcow2',
  'info --object secret,id=s,data=a,loaded=x a.qcow2',
  'info --object secret,id=s,file=dir a.qcow2',
  'info --object secret,id=s,file= a.qcow2',
  'info --object secret,id=s,data=a,format=base64 a.qcow2',
  "info --object 'secret,id=s,data=YW Jj,format=base64' a.qcow2",
  'info --object secret,id=s,data=YWJj=,format=base64 a.qcow2',
  'info --object {"qom-type":"secret","id":"s","data":"a"} a.qcow2',
  'info --object {"qom-type":"secret","id":"s","data":5} a.qcow2',
  'info --object {"qom-type":"secret","id":["s"],"data":"a"} a.qcow2',
  'info --object {"qom-type":"secret","id":"s","data":"a","loaded":"on"} a.qcow2',
  'info --object {"qom-type":"secret","id":"s","data":"a","foo":1} a.qcow2',
  'info --object {"qom-type":"secret","data":"a"} a.qcow2',
  'info --object {"qom-type":5} a.qcow2',
  'info --object {"qom-type":"secret" a.qcow2',
  'info --object {foo} a.qcow2',
  'info --object secret,id=s,data=a,iv=AAAA a.qcow2',
  'info --object secret,id=s,data=a,keyid=k a.qcow2',
  'info --object secret,id=s,data=a,keyid=s a.qcow2',
  `info ${WITH_KEY} --object secret,id=s,data=${ENCRYPTED},format=base64,keyid=k,iv=${IV} a.qcow2`,
  `info ${WITH_KEY} --object secret,id=s,data=${ENCRYPTED},keyid=k,iv=${IV} a.qcow2`,
  `info ${WITH_KEY} --object secret,id=s,data=${ENCRYPTED},format=base64,keyid=k a.qcow2`,
  `info ${WITH_KEY} --object secret,id=s,data=${ENCRYPTED},format=base64,keyid=k,iv=AAAA a.qcow2`,
  `info ${WITH_KEY} --object secret,id=s,data=${ENCRYPTED},format=base64,keyid=k,iv=A*A a.qcow2`,
  `info ${WITH_KEY} --object secret,id=s,data=${IV},format=base64,keyid=k,iv=${IV} a.qcow2`,
  `info ${WITH_KEY} --object secret,id=s,data=AAAA,format=base64,keyid=k,iv=${IV} a.qcow2`,
  `info --object secret,id=k,data=abc --object secret,id=s,data=AAAA,format=base64,keyid=k,iv=${IV} a.qcow2`,
];
