/** Command lines about secrets and encrypted images, for the list in transcript-cases.ts. Data only. */

import type { Case } from './transcript-cases.ts';

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

const S = '--object secret,id=s,data=x';
const N = '--object secret,id=n,data=new';
/** The encrypted fixtures, with their key. */
const open = (image: string, key = 's'): string => `driver=qcow2,file.filename=${image},encrypt.key-secret=${key}`;
const AES = open('aes.qcow2');
const LUKS = open('luks.qcow2');
const NEW = 'encrypt.format=aes,encrypt.key-secret=s';
const NEW_LUKS = 'encrypt.format=luks,encrypt.key-secret=s';

const NO_KEY_FOR_NAMES = 'the name of a backing file can be changed without the key of the image';
const ZERO_FLAGS = 'preallocated clusters read as zeros here';
const TIMES = 'snapshots have times and places of their own';
const RANDOM = 'what was erased is noise';
const NO_SUCH_FORMAT = 'an encryption that does not exist is told, not ignored';

/** Creating a LUKS image takes seconds, and now and then QEMU cannot measure its processor: AES stands for both where it can. */
export const ENCRYPTION_CASES: readonly (string | Case)[] = [
  // ---- create
  `create ${S} -f qcow2 -o ${NEW} x 1M; info x; info --output=json x; check ${S} --image-opts ${open('x')}`,
  `create ${S} -f qcow2 -o encryption=on,encrypt.key-secret=s x 1M; info x`,
  `create ${S} -f qcow2 -o encryption=off x 1M; info x`,
  `create ${S} -f qcow2 -o ${NEW},compat=0.10,cluster_size=4k x 1M; info x`,
  {
    line: `create ${S} -f qcow2 -o ${NEW},preallocation=metadata x 1M; check ${S} --image-opts ${open('x')}`,
    leaves: ZERO_FLAGS,
  },
  ...[
    'encryption=on',
    'encryption=on,encrypt.format=luks,encrypt.key-secret=s',
    'encrypt.format=aes',
    'encrypt.format=aes,encrypt.key-secret=zz',
    `${NEW},encrypt.cipher-alg=aes-128`,
    `${NEW},encrypt.iter-time=10`,
    'encrypt.key-secret=s',
    'encrypt.format=foo,encrypt.key-secret=s',
    'encrypt.format=luks',
    'encrypt.format=luks,encrypt.key-secret=zz',
    `${NEW_LUKS},encrypt.cipher-alg=foo`,
    `${NEW_LUKS},encrypt.cipher-alg=3des`,
    `${NEW_LUKS},encrypt.cipher-alg=des`,
    `${NEW_LUKS},encrypt.cipher-mode=foo`,
    `${NEW_LUKS},encrypt.ivgen-alg=foo`,
    `${NEW_LUKS},encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha1`,
    `${NEW_LUKS},encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha512`,
    `${NEW_LUKS},encrypt.ivgen-hash-alg=foo`,
    `${NEW_LUKS},encrypt.hash-alg=foo`,
    `${NEW_LUKS},encrypt.iter-time=x`,
  ].map((options) => `create ${S} -f qcow2 -o ${options} x 1M`),

  // ---- opening
  ...[AES, LUKS].flatMap((image) => [
    `map ${S} --image-opts ${image}; map --output=json ${S} --image-opts ${image}`,
    `info --image-opts ${image.replace('=s', '=zz')}`,
    `map --image-opts ${image.replace('=s', '=zz')}`,
    `map ${S} --image-opts ${image},encrypt.format=aes`,
    `map ${S} --image-opts ${image},encrypt.format=luks`,
    `map ${S} --image-opts ${image},encrypt.format=foo`,
    `map ${N} --image-opts ${image.replace('=s', '=n')}`,
  ]),
  'info --image-opts driver=qcow2,file.filename=luks.qcow2,encrypt.format=aes',
  `map ${S} --image-opts driver=qcow2,file.filename=a.qcow2,encrypt.key-secret=s`,
  `map ${S} --image-opts driver=qcow2,file.filename=a.qcow2,encrypt.format=luks`,
  ...['map', 'snapshot -l', 'snapshot -c a', 'measure', 'commit', 'amend -o lazy_refcounts=on'].map(
    (verb) => `${verb} luks.qcow2`,
  ),
  'compare aes.qcow2 aes.qcow2',
  { line: "rebase -u -b '' aes.qcow2", differs: NO_KEY_FOR_NAMES },
  'create -f qcow2 -b luks.qcow2 -F qcow2 x; info x',

  // ---- copies, snapshots, sizes
  `convert ${S} -O qcow2 -o ${NEW} a.raw x; compare ${S} --image-opts driver=raw,file.filename=a.raw ${open('x')}; map ${S} --output=json --image-opts ${open('x')}; check ${S} --image-opts ${open('x')}`,
  `convert ${S} --image-opts -O raw ${AES} x`,
  `convert ${S} -n --target-image-opts a.qcow2 ${AES}; convert ${S} --image-opts -O raw ${AES} x`,
  ...['foo', 'luks', 'aes'].map((format) => `convert ${S} -O qcow2 -o encrypt.format=${format} a.raw x`),
  `convert ${S} -c -O qcow2 -o ${NEW} a.raw x`,
  `convert ${S} -c -O qcow2 -o encryption=on,encrypt.key-secret=s a.raw x`,
  {
    line: `snapshot ${S} -c a --image-opts ${LUKS}; snapshot ${S} -l --image-opts ${LUKS}; snapshot ${S} -a a --image-opts ${LUKS}; snapshot ${S} -d a --image-opts ${LUKS}`,
    leaves: TIMES,
  },
  `create -q ${S} -f qcow2 -o ${NEW} -b aes.qcow2 -F qcow2 x; map ${S} --image-opts ${open('x')}; map ${S} --image-opts ${open('x')},backing.encrypt.key-secret=s`,
  `measure ${S} -O qcow2 -o ${NEW} --size 8M`,
  `measure ${S} -O qcow2 -o encrypt.format=luks --size 8M`,
  `measure ${S} -O qcow2 -o encrypt.format=luks,encrypt.key-secret=zz --size 8M`,
  { line: `measure ${S} -O qcow2 -o encrypt.format=foo --size 8M`, differs: NO_SUCH_FORMAT },

  // ---- key slots
  ...[
    'encrypt.state=active',
    'encrypt.state=foo',
    'encrypt.new-secret=n',
    'encrypt.keyslot=3',
    'encrypt.state=active,encrypt.new-secret=zz',
    'encrypt.state=active,encrypt.new-secret=n,encrypt.keyslot=8',
    'encrypt.state=active,encrypt.new-secret=n,encrypt.keyslot=0',
    'encrypt.state=active,encrypt.new-secret=n,encrypt.old-secret=n',
    'encrypt.state=inactive',
    'encrypt.state=inactive,encrypt.new-secret=n',
    'encrypt.state=inactive,encrypt.iter-time=10,encrypt.old-secret=n',
    'encrypt.state=inactive,encrypt.old-secret=n',
    'encrypt.state=inactive,encrypt.old-secret=s',
    'encrypt.state=inactive,encrypt.keyslot=9',
    'encrypt.state=inactive,encrypt.keyslot=7',
    'encrypt.state=inactive,encrypt.keyslot=0',
    'encrypt.state=inactive,encrypt.keyslot=0,encrypt.old-secret=n',
    'encrypt.format=luks',
  ].map((options) => `amend ${S} ${N} -o ${options} --image-opts ${LUKS}`),
  { line: `amend ${S} --force -o encrypt.state=inactive,encrypt.keyslot=7 --image-opts ${LUKS}`, leaves: RANDOM },
  `amend ${S} ${N} -o encrypt.state=active,encrypt.new-secret=n a.qcow2`,
  `amend ${S} ${N} -o encrypt.state=active,encrypt.new-secret=n --image-opts ${AES}`,
];
